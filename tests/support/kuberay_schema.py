"""What KubeRay 1.7 and Kubernetes take of the manifests in docs/cluster, as a JSON schema that refuses unknown keys.

The fields of KubeRay's own objects are all of those of its API reference (ray-project/kuberay, docs/reference/api.md,
v1.7.0); of a pod, which Kubernetes defines, only those that the manifests use are here.
"""

from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "minimum": 0}
FLAG: Schema = {"type": "boolean"}
ANY: Schema = {}
TEXTS: Schema = {"type": "object", "additionalProperties": TEXT}
"""Labels, parameters and quantities: in YAML, a number that is not quoted is none of them."""


def some(*required: str, **properties: Schema) -> Schema:
    """An object of these properties and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def many(item: Schema) -> Schema:
    return {"type": "array", "items": item}


RESOURCES = some("requests", "limits", requests=TEXTS, limits=TEXTS)
ENVIRONMENT = many(
    some(
        "name",
        name=TEXT,
        value=TEXT,
        valueFrom=some("secretKeyRef", secretKeyRef=some("name", "key", name=TEXT, key=TEXT)),
    )
)
PROBE = some(
    "httpGet",
    httpGet=some("path", "port", path=TEXT, port=COUNT),
    initialDelaySeconds=COUNT,
    periodSeconds=COUNT,
    timeoutSeconds=COUNT,
    failureThreshold=COUNT,
)
CONTAINER = some(
    "name",
    "image",
    "resources",
    name=TEXT,
    image=TEXT,
    ports=many(some("containerPort", name=TEXT, containerPort=COUNT)),
    env=ENVIRONMENT,
    resources=RESOURCES,
    securityContext=some(
        allowPrivilegeEscalation={"const": False},
        capabilities=some(drop={"const": ["ALL"]}),
    ),
    volumeMounts=many(some("name", "mountPath", name=TEXT, mountPath=TEXT)),
    readinessProbe=PROBE,
    livenessProbe=PROBE,
)
POD = some(
    "containers",
    containers={**many(CONTAINER), "minItems": 1},
    nodeSelector=TEXTS,
    tolerations=many(some(key=TEXT, operator={"enum": ["Exists", "Equal"]}, effect={"const": "NoSchedule"})),
    automountServiceAccountToken=FLAG,
    restartPolicy={"enum": ["Never"]},
    securityContext=some(
        runAsNonRoot={"const": True},
        runAsUser={"type": "integer", "minimum": 1},
        fsGroup=COUNT,
        seccompProfile=some(type={"const": "RuntimeDefault"}),
    ),
    volumes=many(
        some(
            "name",
            name=TEXT,
            persistentVolumeClaim=some("claimName", claimName=TEXT),
            emptyDir=some(medium={"const": "Memory"}, sizeLimit=TEXT),
        )
    ),
)
POD_TEMPLATE = some("spec", metadata=ANY, spec=POD)

HEAD_GROUP = some(
    "rayStartParams",
    "template",
    template=POD_TEMPLATE,
    headService=ANY,
    enableIngress=FLAG,
    ingressOptions=ANY,
    resources=TEXTS,
    labels=TEXTS,
    rayStartParams=TEXTS,
    serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
)
WORKER_GROUP = some(
    "groupName",
    "minReplicas",
    "maxReplicas",
    "rayStartParams",
    "template",
    suspend=FLAG,
    groupName=TEXT,
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    idleTimeoutSeconds=COUNT,
    priority={"type": "integer"},
    resources=TEXTS,
    labels=TEXTS,
    rayStartParams=TEXTS,
    template=POD_TEMPLATE,
    scaleStrategy=ANY,
    numOfHosts=COUNT,
)
CLUSTER = some(
    "headGroupSpec",
    "rayVersion",
    upgradeStrategy=ANY,
    authOptions=some(enableK8sTokenAuth=FLAG, secretName=TEXT, mode={"enum": ["disabled", "token"]}),
    suspend=FLAG,
    managedBy=TEXT,
    autoscalerOptions=some(
        resources=RESOURCES,
        image=TEXT,
        imagePullPolicy=TEXT,
        securityContext=ANY,
        idleTimeoutSeconds=COUNT,
        upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
        version={"enum": ["v1", "v2"]},
        env=ENVIRONMENT,
        envFrom=ANY,
        volumeMounts=ANY,
        command=many(TEXT),
        args=many(TEXT),
    ),
    headServiceAnnotations=TEXTS,
    enableInTreeAutoscaling=FLAG,
    gcsFaultToleranceOptions=ANY,
    historyServerOptions=ANY,
    networkPolicy=ANY,
    tlsOptions=ANY,
    headGroupSpec=HEAD_GROUP,
    rayVersion=TEXT,
    workerGroupSpecs=many(WORKER_GROUP),
)
JOB = some(
    "entrypoint",
    activeDeadlineSeconds=COUNT,
    backoffLimit=COUNT,
    rayClusterSpec=CLUSTER,
    submitterPodTemplate=ANY,
    metadata=TEXTS,
    clusterSelector=TEXTS,
    submitterConfig=some(backoffLimit=COUNT),
    managedBy=TEXT,
    deletionStrategy=ANY,
    entrypoint=TEXT,
    runtimeEnvYAML=TEXT,
    jobId=TEXT,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
    entrypointResources=TEXT,
    entrypointNumCpus={"type": "number"},
    entrypointNumGpus={"type": "number"},
    ttlSecondsAfterFinished=COUNT,
    preRunningDeadlineSeconds={"type": "integer", "minimum": 1},
    shutdownAfterJobFinishes=FLAG,
    suspend=FLAG,
)
SERVICE = some(
    "serveConfigV2",
    "rayClusterConfig",
    rayClusterDeletionDelaySeconds=COUNT,
    serveService=ANY,
    upgradeStrategy=ANY,
    managedBy=TEXT,
    serveConfigV2=TEXT,
    rayClusterConfig=CLUSTER,
    excludeHeadPodFromServeSvc=FLAG,
    suspend=FLAG,
)


def manifest(kind: str, spec: Schema) -> Schema:
    return some(
        "apiVersion",
        "kind",
        "metadata",
        "spec",
        apiVersion={"const": "ray.io/v1"},
        kind={"const": kind},
        metadata=some("name", name={"type": "string", "pattern": "^[a-z]([-a-z0-9]{0,45}[a-z0-9])?$"}),
        spec=spec,
    )


MANIFESTS = {
    "raycluster.yaml": manifest("RayCluster", CLUSTER),
    "rayjob.yaml": manifest("RayJob", JOB),
    "rayservice.yaml": manifest("RayService", SERVICE),
}
"""By file name."""
