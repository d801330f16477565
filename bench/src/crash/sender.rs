//! The sender: numbered events, pushed body by body, each again until it is acknowledged.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{anyhow, bail};
use serde_json::json;

use super::engine::PATIENCE;

/// Events of a body.
const BODY_EVENTS: u64 = 20;
/// Creatives, some to each campaign.
const CREATIVES: u64 = 60;
/// A body that is not acknowledged for this long is a failure.
const UNACKNOWLEDGED: Duration = Duration::from_secs(90);

/// Ways into the engine. Each numbers its events from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    /// `POST /v1/events`.
    Http,
    /// The topic.
    Kafka,
}

impl Lane {
    pub(super) const ALL: [Lane; 2] = [Lane::Http, Lane::Kafka];

    /// The cost of an event, which tells it from all others.
    fn cost_micros(self, number: u64) -> u64 {
        number * 2 + 1 + self as u64
    }

    /// Whose event costs so much, and which.
    pub(super) fn of_cost(cost_micros: u64) -> Option<(Lane, u64)> {
        let cost = cost_micros.checked_sub(1)?;
        Some((Lane::ALL[(cost % 2) as usize], cost / 2))
    }
}

/// What was sent.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sent {
    /// Events.
    pub(super) events: u64,
    /// Bodies that had to be sent again.
    pub(super) again: u64,
    /// Of these, those that were answered 429 or 503.
    pub(super) refused: u64,
}

/// The sender's thread.
pub(super) struct Sender {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    thread: JoinHandle<anyhow::Result<Sent>>,
}

impl Sender {
    pub(super) fn start(address: SocketAddr) -> Sender {
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(AtomicU64::new(0));
        let (stopped, count) = (stop.clone(), acknowledged.clone());
        let thread = std::thread::spawn(move || {
            let mut sent = Sent::default();
            while !stopped.load(Ordering::Relaxed) {
                let number = sent.events / BODY_EVENTS;
                send(address, number, &mut sent)?;
                sent.events += BODY_EVENTS;
                count.store(sent.events, Ordering::Release);
            }
            Ok(sent)
        });
        Sender { stop, acknowledged, thread }
    }

    /// Events acknowledged so far.
    pub(super) fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Acquire)
    }

    /// Whether it gave up.
    pub(super) fn has_failed(&self) -> bool {
        self.thread.is_finished()
    }

    pub(super) fn stop(self) -> anyhow::Result<Sent> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the sender panicked"))?
    }
}

/// Sends one body until it is acknowledged.
fn send(address: SocketAddr, number: u64, sent: &mut Sent) -> anyhow::Result<()> {
    let (body, key) = (body(number), format!("body-{number}"));
    let headers = [("content-type", "application/x-ndjson"), ("idempotency-key", &key)];
    let started = Instant::now();
    loop {
        let answer = TcpStream::connect(address)
            .and_then(|stream| request(stream, "POST", "/v1/events", &headers, &body));
        match answer {
            Ok((202, answer)) => {
                let expected = format!("\"accepted\":{BODY_EVENTS},\"dead_letters\":0");
                if answer.contains(&expected) {
                    return Ok(());
                }
                bail!("body {number} was answered {answer}");
            }
            Ok((400..=428 | 430..=499, answer)) => bail!("body {number} was refused: {answer}"),
            _ if started.elapsed() > UNACKNOWLEDGED => bail!("body {number} is not acknowledged"),
            // Busy, or full.
            Ok((429 | 503, _)) => sent.refused += 1,
            // Killed, or starting.
            _ => {}
        }
        std::thread::sleep(Duration::from_millis(5));
        sent.again += 1;
    }
}

/// The events of a body. Every other one has no id, so that a body taken twice would count twice.
fn body(number: u64) -> Vec<u8> {
    let mut body = Vec::new();
    for of in number * BODY_EVENTS..(number + 1) * BODY_EVENTS {
        body.extend_from_slice(event(Lane::Http, of, of % 2 == 0).as_bytes());
        body.push(b'\n');
    }
    body
}

/// An event of now, in the engine's own form.
pub(super) fn event(lane: Lane, number: u64, with_id: bool) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros());
    let creative = number * 7 % CREATIVES;
    let mut row = json!({
        "type": "event", "ts_us": now as u64,
        "kind": if number % 11 == 10 { "click" } else { "impression" },
        "tenant": format!("t{}", creative % 3), "platform": "meta", "account": "a",
        "campaign": format!("c{}", creative % 12), "ad_group": "g",
        "creative": format!("x{creative}"), "user": format!("u{}", number % 997),
        "cost_micros": lane.cost_micros(number), "revenue_micros": 0,
    });
    if with_id {
        row["event_id"] = format!("{lane:?}{number}").into();
    }
    row.to_string()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_tell_events_apart() {
        for number in [0, 1, 7, 1_000_000] {
            for lane in Lane::ALL {
                assert_eq!(Lane::of_cost(lane.cost_micros(number)), Some((lane, number)));
            }
        }
        assert_eq!(Lane::of_cost(0), None);
    }
}
