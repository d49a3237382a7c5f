//! A real Chromium, driven over WebDriver.

use anyhow::{Context, Result, bail};
use fantoccini::elements::Element;
use fantoccini::{Client, ClientBuilder, Locator};
use lorikeet_kit::ReservedPort;
use serde_json::json;
use std::io::Write;
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a page may take to show what a test waits for.
const WAIT: Duration = Duration::from_secs(60);

pub struct Browser {
    driver: Child,
    pub client: Client,
    _profile: tempfile::TempDir,
    port: ReservedPort,
}

impl Browser {
    pub async fn start() -> Result<Self> {
        let port = ReservedPort::new()?;
        let driver = Command::new("chromedriver")
            .arg(format!("--port={}", port.number()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("starting chromedriver: run scripts/setup")?;
        let profile = tempfile::tempdir()?;
        let started = Instant::now();
        let mut browser = None;
        while browser.is_none() {
            match connect(port.number(), profile.path()).await {
                Ok(client) => browser = Some(client),
                Err(e) if started.elapsed() > WAIT => {
                    return Err(e).context("connecting to chromedriver");
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
        let client = browser.context("a browser")?;
        Ok(Self { driver, client, _profile: profile, port })
    }

    pub async fn go(&self, url: &str) -> Result<()> {
        Ok(self.client.goto(url).await?)
    }

    /// Waits for the element.
    pub async fn find(&self, css: &str) -> Result<Element> {
        let wait = self.client.wait().at_most(WAIT);
        match wait.for_element(Locator::Css(css)).await {
            Ok(element) => Ok(element),
            Err(e) => {
                let page = self.find_now("body").await?.text().await?;
                bail!("no {css} at {}: {e}\n{page}", self.client.current_url().await?)
            }
        }
    }

    async fn find_now(&self, css: &str) -> Result<Element> {
        Ok(self.client.find(Locator::Css(css)).await?)
    }

    pub async fn click(&self, css: &str) -> Result<()> {
        Ok(self.find(css).await?.click().await?)
    }

    pub async fn fill(&self, css: &str, text: &str) -> Result<()> {
        Ok(self.find(css).await?.send_keys(text).await?)
    }

    pub async fn text(&self, css: &str) -> Result<String> {
        Ok(self.find(css).await?.text().await?)
    }

    /// A picture of the window, as PNG.
    pub async fn screenshot(&self, path: &Path) -> Result<()> {
        Ok(std::fs::write(path, self.client.screenshot().await?)?)
    }
}

async fn connect(port: u16, profile: &Path) -> Result<Client> {
    let capabilities = json!({
        "goog:chromeOptions": {"args": [
            "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--window-size=1280,900", format!("--user-data-dir={}", profile.display()),
        ]},
    });
    let serde_json::Value::Object(capabilities) = capabilities else { bail!("capabilities") };
    let mut builder = ClientBuilder::rustls()?;
    Ok(builder.capabilities(capabilities).connect(&format!("http://127.0.0.1:{port}")).await?)
}

/// Ends the driver and, first, the browser that it started and that would outlive it.
fn shut_down(port: u16) -> std::io::Result<()> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(
        stream,
        "GET /shutdown HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n"
    )?;
    std::io::copy(&mut stream, &mut std::io::sink())?;
    Ok(())
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = shut_down(self.port.number());
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}
