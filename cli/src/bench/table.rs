//! Reports of the engine as lines of a table.

use lorikeet_inference::bench::{BenchReport, Percentiles};

pub fn print_head() {
    println!("{:>11} {:>10} {:>24} {:>24} {:>24}", "", "output", "TTFT ms", "TPOT ms", "ITL ms");
    println!(
        "{:>11} {:>10} {:>24} {:>24} {:>24}",
        "concurrency", "tok/s", "p50 / p90 / p99", "p50 / p90 / p99", "p50 / p90 / p99"
    );
}

pub fn print(name: &str, report: &BenchReport) {
    let show = |p: Percentiles| format!("{:.2} / {:.2} / {:.2}", p.p50, p.p90, p.p99);
    let cpu =
        report.cpu_ms_per_output_token.map_or("".into(), |ms| format!(", {ms:.3} CPU ms/token"));
    println!(
        "{name:>11} {:>10.0} {:>24} {:>24} {:>24}   ({} requests, {:.0} tok/s counted, steps of {} rows, start {:.1} s{cpu})",
        report.output_tokens_per_second,
        show(report.ttft),
        show(report.tpot),
        show(report.itl),
        report.requests,
        report.counted_tokens_per_second,
        report.max_rows,
        report.start.running,
    );
    if let Some(loading) = &report.loading {
        println!(
            "{:>11} {} loads, TTFT ms: cold {}, resident {}",
            "",
            loading.loads,
            show(loading.cold),
            show(loading.resident)
        );
    }
}
