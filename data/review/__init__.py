"""Finds annotations that predictions make improbable, hands them to label tools, and takes corrections back.

Doors: ``suspects`` (ranks the doubtful labels), ``tasks`` (to and from label tools), ``corrections`` (into the
annotation file).
"""
