#!/bin/sh
# Makes the bucket, or finds it there: `s3.bucket.create` fails for one that exists.
shell() { weed shell -master=s3:9333 -filer=s3:8888; }
echo 's3.bucket.create -name lorikeet' | shell
echo 's3.bucket.list' | shell | grep -q '^  lorikeet\b'
