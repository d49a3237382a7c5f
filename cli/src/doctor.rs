//! `lorikeet doctor`: what this machine lacks, and the line that fixes it.

use crate::cache;
use crate::demo::{self, ports, postgres::Binaries};
use anyhow::{Context, bail};
use sha2::{Digest, Sha256};
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Of [`cache::MODEL_FILE`].
const MODEL_SHA256: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";

#[derive(clap::Args)]
#[command(after_help = "Ends with 1 when something that `lorikeet demo` needs is missing.")]
pub struct Args {
    /// A GGUF file or a Hugging Face directory [default: the model that scripts/fetch-model fetches]
    #[arg(long, env = "LORIKEET_MODEL", value_name = "PATH")]
    model: Option<PathBuf>,
    /// The demo's data directory
    #[arg(long, env = "LORIKEET_DATA", value_name = "DIR")]
    data: Option<PathBuf>,
    /// The directory of PostgreSQL's programs
    #[arg(long, env = "LORIKEET_POSTGRES_BIN", value_name = "DIR")]
    postgres_bin: Option<PathBuf>,
    #[command(flatten)]
    ports: ports::Ports,
}

/// One thing looked at.
struct Check {
    subject: &'static str,
    finding: Finding,
}

enum Finding {
    Good(String),
    /// The demo runs without; something else does not.
    Optional {
        lacks: String,
        fix: String,
    },
    Bad {
        problem: String,
        fix: String,
    },
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let checks = [
        Check { subject: "processor", finding: processor() },
        Check { subject: "model", finding: model(args.model.as_deref()) },
        Check { subject: "PostgreSQL", finding: postgres(args.postgres_bin.as_deref()) },
        Check { subject: "data directory", finding: data_directory(args.data.as_deref()) },
        Check { subject: "ports", finding: free_ports(&args.ports) },
        Check { subject: "Python", finding: python() },
        Check { subject: "Chromium", finding: chromium() },
    ];
    for check in &checks {
        println!("{check}");
    }
    let bad = checks.iter().filter(|check| matches!(check.finding, Finding::Bad { .. })).count();
    match bad {
        0 => Ok(()),
        1 => bail!("one problem keeps `lorikeet demo` from running here"),
        n => bail!("{n} problems keep `lorikeet demo` from running here"),
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.finding {
            Finding::Good(what) => write!(f, "ok       {:<15} {what}", self.subject),
            Finding::Optional { lacks, fix } => {
                write!(f, "optional {:<15} {lacks}\n         {:<15} fix: {fix}", self.subject, "")
            }
            Finding::Bad { problem, fix } => {
                write!(f, "PROBLEM  {:<15} {problem}\n         {:<15} fix: {fix}", self.subject, "")
            }
        }
    }
}

fn processor() -> Finding {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    #[cfg(target_arch = "x86_64")]
    let fast =
        [("avx2", is_x86_feature_detected!("avx2")), ("fma", is_x86_feature_detected!("fma"))];
    #[cfg(not(target_arch = "x86_64"))]
    let fast: [(&str, bool); 0] = [];
    let missing: Vec<&str> = fast.iter().filter(|(_, has)| !has).map(|(name, _)| *name).collect();
    if missing.is_empty() {
        return Finding::Good(format!("{cores} cores, with the vector instructions wanted"));
    }
    Finding::Optional {
        lacks: format!("{cores} cores, without {}: answers come slowly", missing.join(", ")),
        fix: "run on a processor of 2013 or later".into(),
    }
}

fn model(given: Option<&Path>) -> Finding {
    let fix = || "scripts/fetch-model".to_owned();
    if let Some(path) = given {
        return if path.exists() {
            Finding::Good(path.display().to_string())
        } else {
            Finding::Bad { problem: format!("{} does not exist", path.display()), fix: fix() }
        };
    }
    let checked = || {
        let path = cache::model()?;
        let sum = sha256(&path).with_context(|| format!("cannot read {}", path.display()))?;
        if sum != MODEL_SHA256 {
            bail!("{} is damaged (its SHA-256 is {sum})", path.display());
        }
        Ok(path.display().to_string())
    };
    match checked() {
        Ok(what) => Finding::Good(what),
        Err(error) => Finding::Bad { problem: format!("{error:#}"), fix: fix() },
    }
}

fn sha256(path: &Path) -> std::io::Result<String> {
    let mut file = std::fs::File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            return Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect());
        }
        hash.update(&buffer[..count]);
    }
}

fn postgres(explicit: Option<&Path>) -> Finding {
    match Binaries::find(explicit, None) {
        Ok(found) => Finding::Good(format!("{} in {}", found.major, found.dir.display())),
        Err(error) => Finding::Bad {
            problem: format!("{error:#}"),
            fix: "scripts/setup, or apt-get install postgresql".into(),
        },
    }
}

fn data_directory(given: Option<&Path>) -> Finding {
    let fix = "choose another with --data or LORIKEET_DATA".to_owned();
    match demo::check_data_directory(given) {
        Ok(dir) => Finding::Good(dir.display().to_string()),
        Err(error) => Finding::Bad { problem: format!("{error:#}"), fix },
    }
}

fn free_ports(ports: &ports::Ports) -> Finding {
    match ports.check_free() {
        Ok(()) => Finding::Good("free".into()),
        Err(error) => Finding::Bad {
            problem: error.to_string(),
            fix: "if that is a demo of yours, all is well; stop it to start another".into(),
        },
    }
}

fn python() -> Finding {
    if !succeeds("python3", &["-m", "pip", "--version"]) {
        return Finding::Optional {
            lacks: "no python3 with pip: scripts/fetch-model needs it".into(),
            fix: "apt-get install python3-pip".into(),
        };
    }
    if !succeeds("python3", &["-c", "import openai"]) {
        return Finding::Optional {
            lacks: "python3 without `openai`: the printed Python snippet needs it".into(),
            fix: "python3 -m pip install openai".into(),
        };
    }
    Finding::Good("python3 with pip and openai".into())
}

fn chromium() -> Finding {
    if succeeds("chromium", &["--version"]) && succeeds("chromedriver", &["--version"]) {
        return Finding::Good("with chromedriver".into());
    }
    Finding::Optional {
        lacks: "chromium or chromedriver is missing: the browser test needs them".into(),
        fix: "scripts/setup, or apt-get install chromium chromium-driver".into(),
    }
}

fn succeeds(program: &str, args: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}
