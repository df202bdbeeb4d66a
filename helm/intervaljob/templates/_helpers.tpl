{{- define "intervaljob.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "intervaljob.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else if contains (include "intervaljob.name" .) .Release.Name }}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "intervaljob.name" .) | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- /* Call with (dict "root" $ "component" "operator"); the selector never changes. */}}
{{- define "intervaljob.selector" -}}
app.kubernetes.io/name: {{ include "intervaljob.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "intervaljob.labels" -}}
{{ include "intervaljob.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- /* Name, namespace, labels and annotations of an object: (dict "root" $ "component" c "name" n "annotations" {…}). */}}
{{- define "intervaljob.metadata" -}}
name: {{ .name }}
namespace: {{ .namespace | default .root.Release.Namespace }}
{{- include "intervaljob.metadata.common" . }}
{{- end }}

{{- define "intervaljob.metadata.common" }}
labels:
  {{- include "intervaljob.labels" . | nindent 2 }}
{{- with merge (dict) (.annotations | default dict) .root.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- /* (dict "root" $ "image" overrides) */}}
{{- define "intervaljob.image" -}}
{{- $common := .root.Values.image }}
{{- $own := .image | default dict }}
{{- $repository := $own.repository | default $common.repository }}
{{- $inherited := not $own.repository }}
{{- $digest := $own.digest | default (ternary $common.digest "" (and $inherited (not $own.tag))) }}
{{- $tag := $own.tag | default (ternary $common.tag "" $inherited) | default .root.Chart.AppVersion }}
{{- if $digest }}{{ printf "%s@%s" $repository $digest }}{{ else }}{{ printf "%s:%s" $repository $tag }}{{ end }}
{{- end }}

{{- define "intervaljob.evaluation" -}}
{{- if not (or .Values.database.existingSecret .Values.database.url) }}true{{ end }}
{{- end }}

{{- define "intervaljob.databaseSecret" -}}
{{- .Values.database.existingSecret | default (printf "%s-database%s" (include "intervaljob.fullname" .) (ternary "-url" "" (not (empty .Values.database.url)))) }}
{{- end }}

{{- /* Pods are replaced when the database is another one: a process reads its URL once. */}}
{{- define "intervaljob.databaseChecksum" -}}
checksum/database: {{ toJson .Values.database | sha256sum }}
{{- end }}

{{- define "intervaljob.operatorServiceAccount" -}}
{{- $default := printf "%s-operator" (include "intervaljob.fullname" .) }}
{{- if .Values.operator.serviceAccount.create }}{{ .Values.operator.serviceAccount.name | default $default }}
{{- else }}{{ .Values.operator.serviceAccount.name | default "default" }}{{ end }}
{{- end }}

{{- define "intervaljob.clusterId" -}}
{{- if .Values.clusterId }}{{ .Values.clusterId }}
{{- else if and .Values.watchNamespaces (include "intervaljob.evaluation" .) }}{{ printf "%s-%s" .Release.Namespace .Release.Name | trunc 63 }}
{{- else if .Values.watchNamespaces }}
{{- fail "clusterId: write a name that no other cluster on this database has: with watchNamespaces, kube-system may not be read" }}
{{- end }}
{{- end }}

{{- /* Security of a Pod and of its containers: the restricted standard. */}}
{{- define "intervaljob.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ . }}
runAsGroup: {{ . }}
fsGroup: {{ . }}
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "intervaljob.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "intervaljob.env.database" -}}
- {name: INTERVALJOB_DATABASE_URL_FILE, value: /etc/intervaljob/database/url}
- {name: INTERVALJOB_DATABASE_SCHEMA, value: {{ .Values.database.schema | quote }}}
{{- end }}

{{- /* (dict "root" $ "key" key-in-the-Secret "secret" name-of-another-one) */}}
{{- define "intervaljob.volumes" -}}
- name: database
  secret:
    secretName: {{ .secret | default (include "intervaljob.databaseSecret" .root) }}
    defaultMode: 0440
    items: [{key: {{ .key }}, path: url}]
- name: tmp
  emptyDir: {}
{{- end }}

{{- define "intervaljob.volumeMounts" -}}
- {name: database, mountPath: /etc/intervaljob/database, readOnly: true}
- {name: tmp, mountPath: /tmp}
{{- end }}

{{- /* Waits until the schema has the steps that this image needs: (dict "root" $ "image" …). */}}
{{- define "intervaljob.waitContainer" -}}
- name: wait-for-schema
  image: {{ include "intervaljob.image" . }}
  imagePullPolicy: {{ (.image | default dict).pullPolicy | default .root.Values.image.pullPolicy }}
  args: [migrate, check, --wait={{ .root.Values.migration.waitSeconds }}]
  env:
    {{- include "intervaljob.env.database" .root | nindent 4 }}
  resources:
    {{- toYaml .root.Values.migration.resources | nindent 4 }}
  securityContext:
    {{- include "intervaljob.containerSecurity" . | nindent 4 }}
  volumeMounts:
    {{- include "intervaljob.volumeMounts" .root | nindent 4 }}
{{- end }}

{{- define "intervaljob.probes" -}}
ports: [{name: http, containerPort: {{ . }}}]
startupProbe:
  httpGet: {path: /healthz, port: http}
  periodSeconds: 1
  failureThreshold: 60
livenessProbe:
  httpGet: {path: /healthz, port: http}
  periodSeconds: 10
  timeoutSeconds: 5
readinessProbe:
  httpGet: {path: /readyz, port: http}
  periodSeconds: 2
  timeoutSeconds: 2
{{- end }}

{{- /* Where Pods go: (dict "root" $ "component" c "place" operator-or-pool "pool" name-or-empty). */}}
{{- define "intervaljob.placement" -}}
{{- with .place.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .place.nodeSelector }}
nodeSelector: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .place.tolerations }}
tolerations: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .place.affinity }}
affinity: {{ toYaml . | nindent 2 }}
{{- end }}
topologySpreadConstraints:
{{- with .place.topologySpreadConstraints }}
  {{- toYaml . | nindent 2 }}
{{- else }}
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "intervaljob.selector" . | nindent 8 }}
        {{- with .pool }}
        intervaljob.dev/pool: {{ . }}
        {{- end }}
{{- end }}
{{- end }}
