//! From the outside, with the client that the planes use.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use aws_sdk_s3::Client;
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_s3::presigning::PresigningConfig;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use lorikeet_s3::{Access, Config, Credential};
use std::path::Path;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const DASHBOARD: &str = "http://127.0.0.1:7700";
const BUCKET: &str = "lorikeet";

/// A served directory; dropping it stops the server.
struct Server {
    endpoint: String,
    stop: CancellationToken,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Server {
    async fn start(root: &Path) -> Self {
        let credential = |key: &str, access| Credential {
            access_key: key.into(),
            secret_key: format!("{key}-secret"),
            access,
        };
        let config = Config {
            root: root.into(),
            bucket: BUCKET.into(),
            allowed_origins: vec![DASHBOARD.into()],
            credentials: vec![
                credential("writer", Access::ReadWrite),
                credential("reader", Access::ReadOnly),
            ],
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let stop = CancellationToken::new();
        tokio::spawn(lorikeet_s3::serve(listener, config, stop.clone()));
        Self { endpoint, stop }
    }

    fn client(&self, key: &str) -> Client {
        let config = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("us-east-1"))
            .endpoint_url(&self.endpoint)
            .force_path_style(true)
            .credentials_provider(Credentials::new(
                key,
                format!("{key}-secret"),
                None,
                None,
                "test",
            ))
            .build();
        Client::from_conf(config)
    }
}

fn body(text: &str) -> ByteStream {
    ByteStream::from(text.as_bytes().to_vec())
}

#[tokio::test]
async fn a_read_only_credential_reads_and_changes_nothing() {
    let root = tempfile::tempdir().unwrap();
    let server = Server::start(root.path()).await;
    let (writer, reader) = (server.client("writer"), server.client("reader"));
    writer.put_object().bucket(BUCKET).key("a/b").body(body("kept")).send().await.unwrap();

    let put = reader.put_object().bucket(BUCKET).key("a/b").body(body("changed")).send().await;
    let error = put.unwrap_err().into_service_error();
    assert_eq!(error.meta().code(), Some("AccessDenied"));
    assert!(reader.delete_object().bucket(BUCKET).key("a/b").send().await.is_err());
    assert!(reader.create_multipart_upload().bucket(BUCKET).key("a/c").send().await.is_err());
    assert!(reader.create_bucket().bucket("other").send().await.is_err());
    let copy = reader.copy_object().bucket(BUCKET).key("a/c").copy_source("lorikeet/a/b");
    assert!(copy.send().await.is_err());

    let listed = reader.list_objects_v2().bucket(BUCKET).send().await.unwrap();
    assert_eq!(listed.contents().len(), 1);
    let read = reader.get_object().bucket(BUCKET).key("a/b").send().await.unwrap();
    assert_eq!(read.body.collect().await.unwrap().into_bytes(), "kept");
}

#[tokio::test]
async fn a_request_without_a_known_signature_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let server = Server::start(root.path()).await;
    server
        .client("writer")
        .put_object()
        .bucket(BUCKET)
        .key("a")
        .body(body("x"))
        .send()
        .await
        .unwrap();

    let plain = reqwest::get(format!("{}/{BUCKET}/a", server.endpoint)).await.unwrap();
    assert_eq!(plain.status(), 403);
    assert!(server.client("stranger").get_object().bucket(BUCKET).key("a").send().await.is_err());
}

#[tokio::test]
async fn a_preflight_is_answered_for_the_dashboards_origin_only() {
    let root = tempfile::tempdir().unwrap();
    let server = Server::start(root.path()).await;
    let preflight = async |origin: &str| {
        reqwest::Client::new()
            .request(reqwest::Method::OPTIONS, format!("{}/{BUCKET}/a", server.endpoint))
            .header("origin", origin)
            .header("access-control-request-method", "PUT")
            .header("access-control-request-headers", "content-type")
            .send()
            .await
            .unwrap()
    };
    let granted = preflight(DASHBOARD).await;
    assert_eq!(granted.status(), 200);
    assert_eq!(granted.headers()["access-control-allow-origin"], DASHBOARD);
    assert!(granted.headers()["access-control-allow-methods"].to_str().unwrap().contains("PUT"));
    assert_eq!(granted.headers()["access-control-allow-headers"], "content-type");

    let refused = preflight("http://evil.example").await;
    assert!(!refused.headers().contains_key("access-control-allow-origin"));
}

#[tokio::test]
async fn a_page_uploads_presigned_parts_and_reads_their_etags() {
    let root = tempfile::tempdir().unwrap();
    let server = Server::start(root.path()).await;
    let writer = server.client("writer");
    let upload = writer.create_multipart_upload().bucket(BUCKET).key("big").send().await.unwrap();
    let id = upload.upload_id().unwrap();
    let parts = [vec![1u8; 5 << 20], vec![2u8; 100]];

    let mut completed = CompletedMultipartUpload::builder();
    for (number, bytes) in (1..).zip(&parts) {
        let request = writer.upload_part().bucket(BUCKET).key("big").upload_id(id);
        let signed = request
            .part_number(number)
            .content_length(bytes.len() as i64)
            .presigned(PresigningConfig::expires_in(Duration::from_secs(60)).unwrap())
            .await
            .unwrap();
        let put = reqwest::Client::new().put(signed.uri()).header("origin", DASHBOARD);
        let answer = put.body(bytes.clone()).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["access-control-allow-origin"], DASHBOARD);
        assert_eq!(answer.headers()["access-control-expose-headers"], "etag");
        let etag = answer.headers()["etag"].to_str().unwrap();
        completed =
            completed.parts(CompletedPart::builder().part_number(number).e_tag(etag).build());
    }
    let complete = writer.complete_multipart_upload().bucket(BUCKET).key("big").upload_id(id);
    complete.multipart_upload(completed.build()).send().await.unwrap();

    let read = server.client("reader").get_object().bucket(BUCKET).key("big").send().await.unwrap();
    assert_eq!(read.body.collect().await.unwrap().to_vec(), parts.concat());
}

#[tokio::test]
async fn the_longest_key_of_an_adapter_can_be_stored_and_copied() {
    let root = tempfile::tempdir().unwrap();
    let server = Server::start(root.path()).await;
    let writer = server.client("writer");
    let (tenant, upload) = ["0198c0de-0000-7000-8000-000000000001"; 2].into();
    let staged = format!("t/{tenant}/uploads/{upload}/adapter_model.safetensors");
    let source = format!("t/{tenant}/a/{}/source/adapter_model.safetensors", "f".repeat(64));

    let upload = writer.create_multipart_upload().bucket(BUCKET).key(&staged).send().await.unwrap();
    let id = upload.upload_id().unwrap();
    let part = writer.upload_part().bucket(BUCKET).key(&staged).upload_id(id).part_number(1);
    let part = part.body(body("weights")).send().await.unwrap();
    let part = CompletedPart::builder().part_number(1).e_tag(part.e_tag().unwrap()).build();
    let parts = CompletedMultipartUpload::builder().parts(part).build();
    let complete = writer.complete_multipart_upload().bucket(BUCKET).key(&staged).upload_id(id);
    complete.multipart_upload(parts).send().await.unwrap();
    let copy = writer.copy_object().bucket(BUCKET).key(&source);
    copy.copy_source(format!("{BUCKET}/{staged}")).send().await.unwrap();

    let read = writer.get_object().bucket(BUCKET).key(&source).send().await.unwrap();
    assert_eq!(read.body.collect().await.unwrap().into_bytes(), "weights");
}

#[tokio::test]
async fn objects_are_still_there_after_a_restart() {
    let root = tempfile::tempdir().unwrap();
    let first = Server::start(root.path()).await;
    first
        .client("writer")
        .put_object()
        .bucket(BUCKET)
        .key("a")
        .body(body("x"))
        .send()
        .await
        .unwrap();
    drop(first);

    let second = Server::start(root.path()).await;
    assert!(second.client("reader").head_object().bucket(BUCKET).key("a").send().await.is_ok());
}

#[tokio::test]
async fn an_origin_with_a_path_is_refused_at_the_start() {
    let root = tempfile::tempdir().unwrap();
    let config = Config {
        root: root.path().into(),
        bucket: BUCKET.into(),
        allowed_origins: vec!["http://127.0.0.1:7700/".into()],
        credentials: vec![],
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let error = lorikeet_s3::serve(listener, config, CancellationToken::new()).await.unwrap_err();
    assert!(error.to_string().contains("http://127.0.0.1:7700/"), "{error}");
}
