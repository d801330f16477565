//! The sender: numbered events, pushed body by body, each again until it is acknowledged.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{anyhow, bail};
use serde_json::json;

/// Events of a body.
const BODY_EVENTS: u64 = 20;
/// Creatives, some to each campaign.
const CREATIVES: u64 = 60;
/// A body that is not acknowledged for this long is a failure.
const PATIENCE: Duration = Duration::from_secs(60);

/// What was sent.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sent {
    /// Events, numbered from 1.
    pub(super) events: u64,
    /// Bodies that had to be sent again.
    pub(super) again: u64,
}

/// The sender's thread.
pub(super) struct Sender {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<anyhow::Result<Sent>>,
}

impl Sender {
    pub(super) fn start(address: SocketAddr) -> Sender {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut sent = Sent::default();
            while !stopped.load(Ordering::Relaxed) {
                let number = sent.events / BODY_EVENTS;
                sent.again += send(address, number)?;
                sent.events += BODY_EVENTS;
            }
            Ok(sent)
        });
        Sender { stop, thread }
    }

    pub(super) fn stop(self) -> anyhow::Result<Sent> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the sender panicked"))?
    }
}

/// Sends one body until it is acknowledged; returns how often again.
fn send(address: SocketAddr, number: u64) -> anyhow::Result<u64> {
    let (body, key) = (body(number), format!("body-{number}"));
    let headers = [("content-type", "application/x-ndjson"), ("idempotency-key", &key)];
    let started = Instant::now();
    let mut again = 0;
    loop {
        let answer = TcpStream::connect(address)
            .and_then(|stream| request(stream, "POST", "/v1/events", &headers, &body));
        match answer {
            Ok((202, answer)) => {
                let expected = format!("\"accepted\":{BODY_EVENTS},\"dead_letters\":0");
                if answer.contains(&expected) {
                    return Ok(again);
                }
                bail!("body {number} was answered {answer}");
            }
            Ok((400..=428 | 430..=499, answer)) => bail!("body {number} was refused: {answer}"),
            _ if started.elapsed() > PATIENCE => bail!("body {number} is not acknowledged"),
            // Killed, starting, or busy.
            _ => std::thread::sleep(Duration::from_millis(5)),
        }
        again += 1;
    }
}

/// The events of a body; the cost of each is its number.
fn body(number: u64) -> Vec<u8> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros());
    let mut body = Vec::new();
    for event in number * BODY_EVENTS..(number + 1) * BODY_EVENTS {
        let creative = event * 7 % CREATIVES;
        let row = json!({
            "type": "event", "ts_us": now as u64,
            "kind": if event % 11 == 10 { "click" } else { "impression" },
            "event_id": format!("e{event}"), "tenant": format!("t{}", creative % 3),
            "platform": "meta", "account": "a", "campaign": format!("c{}", creative % 12),
            "ad_group": "g", "creative": format!("x{creative}"), "user": format!("u{}", event % 997),
            "cost_micros": event + 1, "revenue_micros": 0,
        });
        body.extend_from_slice(row.to_string().as_bytes());
        body.push(b'\n');
    }
    body
}

/// One HTTP request on a connection of its own; status and body of the answer.
pub(super) fn request(
    mut stream: TcpStream,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> io::Result<(u16, String)> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    head += &format!("content-length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let broken = || io::Error::new(io::ErrorKind::InvalidData, "no HTTP answer");
    let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(broken)?;
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
    Ok((status, body.unwrap_or_default()))
}
