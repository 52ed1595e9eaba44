{{- define "turret.labels" -}}
app.kubernetes.io/name: turret
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}
{{- define "turret.name" -}}
{{ printf "%s-turret" .Release.Name | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- define "turret.checks" -}}
{{- $many := or (gt (int .Values.replicas) 1) .Values.autoscaling.enabled }}
{{- if and $many (ne .Values.state.accessMode "ReadWriteMany") }}
{{- fail "more than one replica needs state.accessMode=ReadWriteMany: each keeps its usage journal there" }}
{{- end }}
{{- end }}
