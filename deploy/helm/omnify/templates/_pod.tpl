{{- define "omnify.labels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- /* The pod of a process; `.role` is engine or lent, `.root` the chart. */}}
{{- define "omnify.pod" -}}
{{- $values := .root.Values }}
{{- $name := .root.Release.Name }}
{{- $processes := int $values.processes }}
{{- $workers := int $values.workers }}
metadata:
  labels:
    {{- include "omnify.labels" .root | nindent 4 }}
    app.kubernetes.io/component: {{ .role }}
  annotations:
    # A changed configuration or number of processes starts all of them again.
    checksum/config: {{ printf "%s %d %d" $values.config $processes $workers | sha256sum }}
spec:
  terminationGracePeriodSeconds: {{ $values.terminationGracePeriodSeconds }}
  securityContext: {runAsNonRoot: true, runAsUser: 10001, fsGroup: 10001}
  {{- with $values.affinity }}
  affinity: {{- toYaml . | nindent 4 }}
  {{- end }}
  containers:
    - name: engine
      image: "{{ $values.image.repository }}:{{ $values.image.tag | default .root.Chart.AppVersion }}"
      imagePullPolicy: {{ $values.image.pullPolicy }}
      {{- if eq $processes 1 }}
      args: [run, -c, /etc/omnify/omnify.toml, --set, engine.workers={{ $workers }}]
      {{- else }}
      {{- /* A pod's number is that of its set; process 0 is the engine's own set. */}}
      command: [/bin/sh, -c]
      args:
        - >-
          exec omnify run -c /etc/omnify/omnify.toml --set engine.workers={{ $workers }}
          --processes {{ $processes }}
          --process {{ if eq .role "engine" }}0{{ else }}"$((${HOSTNAME##*-} + 1))"{{ end }}
          --hosts /etc/omnify/hosts
      {{- end }}
      {{- with $values.envFrom }}
      envFrom: {{- toYaml . | nindent 8 }}
      {{- end }}
      ports:
        - {name: http, containerPort: 8080}
        {{- if gt $processes 1 }}
        - {name: mesh, containerPort: 7000}
        {{- end }}
        {{- if and (gt $processes 1) (eq .role "engine") }}
        - {name: control, containerPort: 7001}
        {{- end }}
      # A process answers once it has loaded its state, or has been let in.
      startupProbe:
        httpGet: {path: /healthz, port: http}
        periodSeconds: 10
        failureThreshold: {{ $values.startupSteps }}
      livenessProbe:
        httpGet: {path: /healthz, port: http}
        periodSeconds: 10
      readinessProbe:
        httpGet: {path: /readyz, port: http}
        periodSeconds: 5
      securityContext:
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        capabilities: {drop: [ALL]}
      resources: {{- toYaml $values.resources | nindent 8 }}
      volumeMounts:
        - {name: config, mountPath: /etc/omnify, readOnly: true}
        - {name: secrets, mountPath: /run/secrets/omnify, readOnly: true}
        {{- if eq .role "engine" }}
        - {name: data, mountPath: /var/lib/omnify}
        {{- end }}
  volumes:
    - name: config
      configMap: {name: {{ $name }}-config}
    - name: secrets
      secret: {secretName: {{ $values.secretName }}}
{{- end }}
