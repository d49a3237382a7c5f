use super::*;
use lorikeet_compute::backend::cuda::check::smollm2;

async fn measure(by: LoadingBy) -> BenchReport {
    let directory = tempfile::tempdir().expect("a directory");
    let config = BenchConfig {
        device: BenchDevice::Sim(SimConfig::default()),
        weights: BenchWeights::Random,
        spec: smollm2(2),
        scheduler: SchedulerConfig::default(),
        concurrency: 4,
        prompt_tokens: 16,
        output_tokens: 8,
        adapters: 3,
        rank: 4,
        linears: vec![Linear::QProj],
        loading: Some(Loading { adapters: 2, rank: 8, pause: Duration::from_millis(10), by }),
        host_bytes: 1 << 30,
        seed: 1,
        warm_up: Duration::from_millis(20),
        window: Duration::from_millis(500),
        directory: directory.path().into(),
    };
    run(config, |_| ()).await.expect("runs")
}

#[tokio::test(flavor = "multi_thread")]
async fn adapters_are_loaded_beside_the_load_without_requests_of_their_own() {
    let loading = measure(LoadingBy::WarmUp).await.loading.expect("loads");
    assert!(loading.loads > 0 && loading.resident.p50.is_nan(), "{loading:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_loop_measures_an_engine_with_adapters() {
    let report = measure(LoadingBy::Request).await;
    assert!(report.requests > 0 && report.counted_tokens_per_second > 0.0, "{report:?}");
    assert!(report.loading.is_some_and(|l| l.loads > 0 && l.cold.p50 > 0.0), "{report:?}");
    assert!(report.itl.p50 <= report.itl.p99, "{report:?}");
}
