#!/bin/sh
# SeaweedFS with two credentials: one that may write, for the control plane, and one that may only
# read, for nodes.
set -eu
cat >/tmp/s3.json <<JSON
{
  "identities": [
    {
      "name": "writer",
      "credentials": [{ "accessKey": "$LORIKEET_S3_ACCESS_KEY", "secretKey": "$LORIKEET_S3_SECRET_KEY" }],
      "actions": ["Admin", "Read", "Write", "List"]
    },
    {
      "name": "reader",
      "credentials": [{ "accessKey": "$LORIKEET_S3_READER_ACCESS_KEY", "secretKey": "$LORIKEET_S3_READER_SECRET_KEY" }],
      "actions": ["Read:lorikeet", "List:lorikeet"]
    }
  ]
}
JSON
exec weed server -dir=/data -s3 -s3.config=/tmp/s3.json -ip.bind=0.0.0.0
