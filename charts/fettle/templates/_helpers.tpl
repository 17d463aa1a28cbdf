{{- define "fettle.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 52 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 52 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "fettle.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (ternary (include "fettle.name" .) "default" .Values.serviceAccount.create) }}
{{- end }}

{{- define "fettle.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end }}

{{- define "fettle.labels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- /* Reference of the image named by (list $ "server"). */}}
{{- define "fettle.image" -}}
{{- $image := index (index . 0).Values.image (index . 1) -}}
{{ $image.repository }}:{{ $image.tag | default (index . 0).Chart.AppVersion }}
{{- end }}

{{- /* Every setting of fettle/settings.py that is the same in all pods. Numbers go through toJson: Helm would print 1e+06. */}}
{{- define "fettle.settings" -}}
FETTLE_OPTIMIZER_IMAGE: {{ include "fettle.image" (list . "optimizer") | quote }}
FETTLE_SERVER_IMAGE: {{ include "fettle.image" (list . "server") | quote }}
FETTLE_OPTIMIZER_TORCH_IMAGE: {{ include "fettle.image" (list . "optimizerTorch") | quote }}
FETTLE_OPTIMIZER_TENSORFLOW_IMAGE: {{ include "fettle.image" (list . "optimizerTensorflow") | quote }}
FETTLE_OPTIMIZER_TRANSFORMERS_IMAGE: {{ include "fettle.image" (list . "optimizerTransformers") | quote }}
FETTLE_OPTIMIZER_SKLEARN_IMAGE: {{ include "fettle.image" (list . "optimizerSklearn") | quote }}
FETTLE_SERVER_LITERT_IMAGE: {{ include "fettle.image" (list . "serverLitert") | quote }}
FETTLE_SERVER_TORCH_IMAGE: {{ include "fettle.image" (list . "serverTorch") | quote }}
FETTLE_OPTIMIZER_GPU_IMAGE: {{ include "fettle.image" (list . "optimizerGpu") | quote }}
FETTLE_SERVER_GPU_IMAGE: {{ include "fettle.image" (list . "serverGpu") | quote }}
FETTLE_OPTIMIZER_GPU_TORCH_IMAGE: {{ include "fettle.image" (list . "optimizerGpuTorch") | quote }}
FETTLE_SERVER_GPU_TORCH_IMAGE: {{ include "fettle.image" (list . "serverGpuTorch") | quote }}
FETTLE_IMAGE_PULL_POLICY: {{ .Values.image.pullPolicy | quote }}
FETTLE_IMAGE_PULL_SECRETS: {{ join "," .Values.image.pullSecrets | quote }}
FETTLE_WATCH_NAMESPACES: {{ join "," .Values.watchNamespaces | quote }}
FETTLE_IGNORE_NAMESPACES: {{ join "," .Values.ignoreNamespaces | quote }}
FETTLE_STORE_URI: {{ .Values.store.uri | quote }}
FETTLE_STORE_SECRET_NAME: {{ .Values.store.secretName | quote }}
FETTLE_STORE_CREATE: {{ .Values.store.create | quote }}
FETTLE_STORE_SIZE: {{ .Values.store.size | quote }}
FETTLE_STORE_STORAGE_CLASS: {{ .Values.store.storageClass | quote }}
FETTLE_STORE_ACCESS_MODES: {{ join "," .Values.store.accessModes | quote }}
FETTLE_JOB_RESOURCES: {{ .Values.jobs.resources | toJson | quote }}
FETTLE_MEASURE_MEMORY: {{ .Values.jobs.measureMemory | quote }}
FETTLE_MEASURE_SECONDS: {{ .Values.jobs.measureSeconds | toJson | quote }}
FETTLE_JOB_TTL_SECONDS: {{ .Values.jobs.ttlSeconds | toJson | quote }}
FETTLE_GPU_PREFLIGHT: {{ .Values.jobs.gpuPreflight | toJson | quote }}
FETTLE_UNSCHEDULABLE_SECONDS: {{ .Values.jobs.unschedulableSeconds | toJson | quote }}
FETTLE_SERVER_RESOURCES: {{ .Values.serving.resources | toJson | quote }}
FETTLE_SERVER_MEMORY: {{ .Values.serving.memory | quote }}
FETTLE_DRAIN_SECONDS: {{ .Values.serving.drainSeconds | toJson | quote }}
FETTLE_CONNECTION_MAX_REQUESTS: {{ .Values.serving.connectionMaxRequests | toJson | quote }}
FETTLE_CONNECTION_MAX_SECONDS: {{ .Values.serving.connectionMaxSeconds | toJson | quote }}
FETTLE_SCRAPE_TIMEOUT_SECONDS: {{ .Values.serving.scrapeTimeoutSeconds | toJson | quote }}
FETTLE_WORKERS: {{ .Values.operator.workers | toJson | quote }}
FETTLE_RESYNC_SECONDS: {{ .Values.operator.resyncSeconds | toJson | quote }}
FETTLE_LIVENESS_SECONDS: {{ .Values.operator.livenessSeconds | toJson | quote }}
FETTLE_HEALTH_PORT: {{ .Values.operator.port | toJson | quote }}
FETTLE_LEASE_NAME: {{ .Values.operator.lease.name | quote }}
FETTLE_LEASE_DURATION_SECONDS: {{ .Values.operator.lease.durationSeconds | toJson | quote }}
FETTLE_LEASE_RENEW_SECONDS: {{ .Values.operator.lease.renewSeconds | toJson | quote }}
FETTLE_LEASE_RETRY_SECONDS: {{ .Values.operator.lease.retrySeconds | toJson | quote }}
FETTLE_LOG_LEVEL: {{ .Values.operator.log.level | quote }}
FETTLE_LOG_FORMAT: {{ .Values.operator.log.format | quote }}
{{- end }}

{{- /* What the operator may do in a namespace that it watches. */}}
{{- define "fettle.rules" -}}
# The operator reads the two kinds and never writes a spec or a finalizer. No ownerReference sets blockOwnerDeletion, so the admission
# plugin OwnerReferencesPermissionEnforcement does not require permissions for finalizers either.
- apiGroups: [fettle.dev]
  resources: [optimizedmodels, modeldeployments]
  verbs: [get, list, watch]
# One PUT of the status per reconciliation.
- apiGroups: [fettle.dev]
  resources: [optimizedmodels/status, modeldeployments/status]
  verbs: [update]
# One Job per task. It is created once, never patched, and deleted when no task needs it.
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, delete]
# To see why a Job's pod is waiting or has failed, which serving pods are ready, and their addresses for the analysis.
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
# The result of a Job is the last line of its log.
- apiGroups: [""]
  resources: [pods/log]
  verbs: [get]
# The pods of a revision and its ledger entry. Server-side apply needs create and patch.
- apiGroups: [apps]
  resources: [deployments, controllerrevisions]
  verbs: [get, list, watch, create, patch, delete]
# The address of a ModelDeployment, whose annotation records the stable revision, and the names of pods that train together. Deleted with its owner.
- apiGroups: [""]
  resources: [services]
  verbs: [get, list, watch, create, patch]
# The token with which the pods of a ModelDeployment exchange samples. The operator never reads it; the kubelet mounts it.
- apiGroups: [""]
  resources: [secrets]
  verbs: [create]
# Keeps enough serving pods during node drains.
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch]
# The store's claim is created if it is missing. It is never patched or deleted.
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [get, list, watch, create]
# One Event per transition. Listing Events shows why a Job has no pod (a quota, an admission policy).
- apiGroups: [""]
  resources: [events]
  verbs: [create, list]
# Watch events of the operator's own Lease prove that its watches are alive.
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  resourceNames: [{{ .Values.operator.lease.name | quote }}]
  verbs: [list, watch]
{{- end }}
