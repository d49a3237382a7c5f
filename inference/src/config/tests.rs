use super::*;
use lorikeet_compute::backend::cuda::CudaConfig;

const NEEDED: [(&str, &str); 6] = [
    ("LORIKEET_NODE_DATA", "/data"),
    ("LORIKEET_NODE_TOKEN_FILE", "/token"),
    ("LORIKEET_MODEL", "/model.gguf"),
    ("LORIKEET_S3_ENDPOINT", "http://127.0.0.1:7720"),
    ("LORIKEET_S3_ACCESS_KEY", "reader"),
    ("LORIKEET_S3_SECRET_KEY", "secret"),
];

fn config(more: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let find = |vars: &[(&str, &str)], name: &str| {
        vars.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned())
    };
    Config::from_vars(|name| find(more, name).or_else(|| find(&NEEDED, name)))
}

#[test]
fn what_is_not_said_has_the_documented_default() {
    let config = config(&[("LORIKEET_MODEL_NAME", "")]).unwrap();
    assert_eq!(config.listen.to_string(), "127.0.0.1:7710");
    assert_eq!(config.public_api_url, "http://127.0.0.1:7710/v1");
    assert_eq!(config.control_plane, "http://127.0.0.1:7730");
    assert_eq!((config.model_name, config.dashboard_origin), (None, None));
    assert!(matches!(config.device, Device::Auto { .. }));
    assert_eq!(config.metrics_listen, "127.0.0.1:7711".parse().ok());
    assert_eq!(config.trace, TraceConfig { endpoint: None, ca: None, sampled: 1.0 });
}

#[test]
fn metrics_may_be_off() {
    let config = config(&[("LORIKEET_METRICS_LISTEN", "off")]).unwrap();
    assert_eq!(config.metrics_listen, None);
}

#[test]
fn what_is_missing_is_named_with_what_it_is() {
    for (missing, _) in NEEDED {
        let error = config(&[(missing, "")]).err().unwrap().to_string();
        assert!(error.starts_with(missing), "{error}");
    }
}

#[test]
fn what_is_wrong_is_named_with_its_value() {
    for (name, value) in [
        ("LORIKEET_NODE_LISTEN", "7710"),
        ("LORIKEET_CONTROL_PLANE", "control-plane:7730"),
        ("LORIKEET_PUBLIC_API_URL", "http://node/"),
        ("LORIKEET_DASHBOARD_ORIGIN", "https://lorikeet.example/adapters"),
        ("LORIKEET_CORS_ORIGINS", "b.example/x"),
        ("LORIKEET_DEVICE", "abacus"),
        ("LORIKEET_KV_TOKENS", "many"),
        ("LORIKEET_MAX_NUM_SEQS", "0"),
        ("LORIKEET_DRAIN_SECONDS", "-1"),
        ("LORIKEET_METRICS_LISTEN", "7711"),
        ("OTEL_TRACES_SAMPLER_ARG", "1.5"),
        ("LORIKEET_CLIENT_READ_SECONDS", "0"),
        ("LORIKEET_REQUEST_SECONDS", "0"),
    ] {
        let error = config(&[(name, value)]).err().unwrap().to_string();
        assert!(error.starts_with(name) && error.contains(value), "{error}");
    }
}

#[test]
fn the_control_plane_is_reached_with_tls_and_a_pinned_ca_or_on_loopback() {
    let name = "LORIKEET_CONTROL_PLANE";
    for url in ["http://localhost:1", "http://127.8.0.1:1", "http://[::1]:1"] {
        assert_eq!(config(&[(name, url)]).unwrap().control_plane, url);
    }
    let ca = ("LORIKEET_CONTROL_PLANE_CA", "/keys/ca.pem");
    let with_ca = config(&[(name, "https://plane:7730"), ca]).unwrap();
    assert_eq!(with_ca.control_plane_ca, Some("/keys/ca.pem".into()));

    let error = config(&[(name, "https://plane:7730")]).err().unwrap().to_string();
    assert!(error.starts_with("LORIKEET_CONTROL_PLANE_CA is not set"), "{error}");
    for url in ["http://plane:7730", "http://10.0.0.1:7730", "http://localhost.example"] {
        let error = config(&[(name, url), ca]).err().unwrap().to_string();
        assert!(error.contains(url) && error.contains("use https"), "{error}");
    }
}

#[test]
fn sizes_reach_the_device_that_was_chosen() {
    let sizes = [
        ("LORIKEET_KV_TOKENS", "100"),
        ("LORIKEET_ADAPTER_DEVICE_BYTES", "5000"),
        ("LORIKEET_MAX_NUM_BATCHED_TOKENS", "64"),
    ];
    let Device::Auto { cpu, cuda } = config(&sizes).unwrap().device else { panic!("either") };
    assert_eq!((cpu.kv_tokens, cpu.adapter_bytes, cpu.max_rows), (100, 5000, 64));
    assert_eq!((cuda.kv_tokens, cuda.adapter_bytes), (Some(100), Some(5000)));
    assert_eq!(cuda.max_rows, Some(64));
    let second = config(&[("LORIKEET_DEVICE", "cuda:1")]).unwrap().device;
    assert!(matches!(second, Device::Cuda(CudaConfig { ordinal: 1, .. })));
    let sim = [&sizes[..], &[("LORIKEET_DEVICE", "sim")]].concat();
    let Device::Sim(sim) = config(&sim).unwrap().device else { panic!("the simulation") };
    assert_eq!((sim.capacity.num_blocks, sim.capacity.adapter_bytes), (7, 5000));
}
