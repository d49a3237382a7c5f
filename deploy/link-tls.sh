#!/bin/sh
# Certificates for the link between the control plane and its nodes.
#
#   deploy/link-tls.sh DIR HOST      HOST: the name or address by which nodes reach the control plane
#
#   DIR/link-ca.pem        LORIKEET_CONTROL_PLANE_CA of every node; made once
#   DIR/link-ca-key.pem    signs; no server reads it; made once
#   DIR/link.pem           LORIKEET_GRPC_TLS_CERT, for 825 days; made anew by each run
#   DIR/link-key.pem       LORIKEET_GRPC_TLS_KEY; made anew by each run
set -eu
umask 077
cd "$1"
case $2 in
*:*) name=IP:$2 ;;
*[!0-9.]*) name=DNS:$2 ;;
*) name=IP:$2 ;;
esac

new_key() {
    openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1"
}

if [ ! -f link-ca.pem ]; then
    new_key link-ca-key.pem
    openssl req -x509 -new -key link-ca-key.pem -days 3650 -subj "/CN=Lorikeet link CA" -out link-ca.pem
fi
new_key link-key.pem
printf 'subjectAltName=%s\nextendedKeyUsage=serverAuth\n' "$name" >link.ext
openssl req -new -key link-key.pem -subj "/CN=Lorikeet control plane" -out link.csr
openssl x509 -req -in link.csr -CA link-ca.pem -CAkey link-ca-key.pem -set_serial "0x$(openssl rand -hex 16)" \
    -days 825 -extfile link.ext -out link.pem
rm link.csr link.ext
chmod 644 link-ca.pem link.pem
