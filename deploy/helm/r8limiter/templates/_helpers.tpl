{{- define "r8limiter.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 52 | trimSuffix "-" }}
{{- end }}

{{- define "r8limiter.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" }}
{{- else if contains (include "r8limiter.name" .) .Release.Name }}
{{- .Release.Name | trunc 52 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "r8limiter.name" .) | trunc 52 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "r8limiter.selector" -}}
app.kubernetes.io/name: {{ include "r8limiter.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: gateway
{{- end }}

{{- define "r8limiter.redisSelector" -}}
app.kubernetes.io/name: {{ include "r8limiter.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: redis
{{- end }}

{{- define "r8limiter.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "r8limiter.testSelector" -}}
app.kubernetes.io/name: {{ include "r8limiter.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: test
{{- end }}

{{- define "r8limiter.image" -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}{{ with .Values.image.digest }}@{{ . }}{{ end }}
{{- end }}

{{/* Where the listeners are: the port of each address; the proxy's is empty where it is off. */}}
{{- define "r8limiter.proxyPort" -}}
{{- regexFind "[0-9]+$" (dig "proxy" "listen" "" .Values.config) }}
{{- end }}

{{- define "r8limiter.controlPort" -}}
{{- regexFind "[0-9]+$" .Values.config.admin.listen }}
{{- end }}

{{/* The seconds of config.proxy.drain_timeout, rounded up. */}}
{{- define "r8limiter.drainSeconds" -}}
{{- $timeout := dig "proxy" "drain_timeout" "30s" .Values.config | toString }}
{{- if not (regexMatch "^([0-9]+([.][0-9]+)?(h|m|s|ms))+$" $timeout) }}
{{- fail (printf "config.proxy.drain_timeout %q is no duration: write 30s or 1m30s" $timeout) }}
{{- end }}
{{- $units := dict "h" 3600.0 "m" 60.0 "s" 1.0 "ms" 0.001 }}
{{- $seconds := 0.0 }}
{{- range regexFindAll "[0-9.]+[hms]+" $timeout -1 }}
{{- $seconds = addf $seconds (mulf (float64 (regexFind "[0-9.]+" .)) (get $units (regexFind "[hms]+" .))) }}
{{- end }}
{{- ceil $seconds | int }}
{{- end }}

{{/* How long a pod may take to stop: above what it drains for. */}}
{{- define "r8limiter.grace" -}}
{{- $drain := include "r8limiter.drainSeconds" . | int }}
{{- $grace := int .Values.terminationGracePeriodSeconds }}
{{- if eq $grace 0 }}{{ add $drain 10 }}
{{- else if le $grace $drain }}
{{- fail (printf "terminationGracePeriodSeconds %d must be above the %d s of config.proxy.drain_timeout, or pods are killed while they drain; 0 is 10 s more" $grace $drain) }}
{{- else }}{{ $grace }}{{ end }}
{{- end }}

{{- define "r8limiter.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}{{ default (include "r8limiter.fullname" .) .Values.serviceAccount.name }}{{ else }}{{ default "default" .Values.serviceAccount.name }}{{ end }}
{{- end }}

{{- define "r8limiter.secret" -}}
{{ default (include "r8limiter.fullname" .) .Values.existingSecret }}
{{- end }}

{{- define "r8limiter.redisSecret" -}}
{{ default (printf "%s-redis" (include "r8limiter.fullname" .)) .Values.redis.bundled.existingSecret }}
{{- end }}

{{/* What pods of every kind share: where they run and how their images are pulled. */}}
{{- define "r8limiter.placement" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* How a probe asks the control listener for a path. A kubelet has no certificate to show. */}}
{{- define "r8limiter.probe" -}}
{{- if include "r8limiter.clientCA" . }}
tcpSocket: {port: control}
{{- else }}
httpGet: {path: {{ .path }}, port: control{{ if include "r8limiter.controlTLS" . }}, scheme: HTTPS{{ end }}}
{{- end }}
{{- end }}

{{/* Not empty where the control listener wants certificates of its clients. */}}
{{- define "r8limiter.clientCA" -}}
{{- dig "admin" "tls" "client_ca_file" "" .Values.config }}
{{- end }}

{{/* Not empty where the control listener speaks TLS. */}}
{{- define "r8limiter.controlTLS" -}}
{{- if or .Values.tls.controlSecret (dig "admin" "tls" "" .Values.config) }}true{{ end }}
{{- end }}

{{/* The configuration with tls and limiter.redis filled in; what it says there itself wins. */}}
{{- define "r8limiter.config" -}}
{{- $config := deepCopy .Values.config }}
{{- if .Values.tls.proxySecret }}
{{- $proxy := default dict (get $config "proxy") }}
{{- $pair := dict "cert_file" "/etc/r8limiter-tls/proxy/tls.crt" "key_file" "/etc/r8limiter-tls/proxy/tls.key" }}
{{- $_ := set $proxy "tls" (mergeOverwrite (dict "certificates" (list $pair)) (default dict (get $proxy "tls"))) }}
{{- $_ := set $config "proxy" $proxy }}
{{- end }}
{{- if .Values.tls.controlSecret }}
{{- $pair := dict "cert_file" "/etc/r8limiter-tls/control/tls.crt" "key_file" "/etc/r8limiter-tls/control/tls.key" }}
{{- $_ := set $config.admin "tls" (mergeOverwrite $pair (default dict (get $config.admin "tls"))) }}
{{- end }}
{{- if ne .Values.redis.mode "none" }}
{{- $limiter := default dict (get $config "limiter") }}
{{- $redis := dict "url" "${R8LIMITER_REDIS_URL}" "timeout" .Values.redis.timeout "key_prefix" .Values.redis.keyPrefix }}
{{- $_ := set $limiter "redis" (mergeOverwrite $redis (default dict (get $limiter "redis"))) }}
{{- $_ := set $config "limiter" $limiter }}
{{- end }}
{{- toYaml $config }}
{{- end }}

{{/* What of the configuration only a start takes in: see "Reload" in the program's README. */}}
{{- define "r8limiter.fixed" -}}
{{- $config := include "r8limiter.config" . | fromYaml }}
{{- $proxy := default dict $config.proxy }}
{{- $proxyTLS := default dict $proxy.tls }}
{{- $admin := default dict $config.admin }}
{{- $adminTLS := default dict $admin.tls }}
{{- list $proxy.listen $proxy.proxy_protocol (empty $proxyTLS) $proxyTLS.min_version
  $admin.listen (empty $adminTLS) $adminTLS.min_version (empty $adminTLS.client_ca_file)
  (default dict $config.limiter).redis (default dict $config.log).format | toJson }}
{{- end }}

{{/* The bundled Redis' password: the given one, the one there is, or a new one. */}}
{{- define "r8limiter.redisPassword" -}}
{{- $kept := lookup "v1" "Secret" .Release.Namespace (printf "%s-redis" (include "r8limiter.fullname" .)) }}
{{- if .Values.redis.bundled.password }}{{ .Values.redis.bundled.password }}
{{- else if and $kept $kept.data }}{{ index $kept.data "password" | b64dec }}
{{- else }}{{ randAlphaNum 32 }}{{ end }}
{{- end }}

{{- define "r8limiter.restricted" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}
