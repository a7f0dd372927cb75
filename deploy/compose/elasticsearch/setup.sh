#!/bin/bash
# Passwords of Kibana and Filebeat. Done again, it changes nothing but passwords that have changed.
set -euo pipefail

elastic() {
    local method=$1 path=$2 body=$3
    # The password goes in by standard input, so that it is in no process's arguments.
    printf 'user = "elastic:%s"\n' "$ELASTIC_PASSWORD" |
        curl --fail-with-body --silent --show-error --config - --request "$method" \
            --header 'Content-Type: application/json' --data-binary @<(printf '%s' "$body") \
            "http://elasticsearch:9200/$path"
    echo
}

# Nothing that would end a JSON string.
for name in ELASTIC_PASSWORD KIBANA_PASSWORD FILEBEAT_PASSWORD; do
    if [[ ! ${!name} =~ ^[A-Za-z0-9._~=-]{12,}$ ]]; then
        echo "$name in .env: expected 12 or more of A-Z a-z 0-9 . _ ~ = -" >&2
        exit 1
    fi
done

elastic POST _security/user/kibana_system/_password "{\"password\": \"$KIBANA_PASSWORD\"}"
elastic PUT _security/role/filebeat_publisher '{
    "cluster": ["monitor", "manage_ilm", "manage_index_templates", "read_pipeline"],
    "indices": [{"names": ["filebeat-*"], "privileges": ["create_doc", "auto_configure", "manage"]}]
}'
elastic PUT _security/user/filebeat "{\"password\": \"$FILEBEAT_PASSWORD\", \"roles\": [\"filebeat_publisher\"]}"
