//! Reads session scripts and prints what came out; the language is described in `sessions.rs`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use jiff::tz::TimeZone;
use omnify_operators::model::{
    AttributionRule, EntityId, EntityKey, Event, EventKind, EventTime, Fatigue, FatigueState,
    FeatureRow, Level, NO_ID, NO_USER, Registry, RegistryView, ReportKey, ReportRow, ReportVersion,
    Span, Stats, Tick, tick_of_us, us_of_tick,
};
use omnify_operators::spec::{Cadence, FeatureSpec, PaneRows};
use xxhash_rust::xxh3::xxh3_64;

use crate::support::{Inputs, Output};

/// A script, read.
pub(crate) struct Session {
    pub(crate) spec: FeatureSpec,
    pub(crate) registry: Arc<Registry>,
    pub(crate) inputs: BTreeMap<Tick, Inputs>,
    show: Vec<Level>,
    /// Line number of each `expect` and the newest tick before it.
    expects: Vec<(usize, Tick)>,
}

/// Where a line stands: in round `round` of `count`, which begins at `start`.
#[derive(Clone, Copy)]
struct Round {
    start: EventTime,
    round: i64,
    count: i64,
}

type Result<T> = std::result::Result<T, String>;

impl Session {
    pub(crate) fn read(text: &str) -> Result<Session> {
        let lines: Vec<(usize, Vec<&str>)> = text
            .lines()
            .enumerate()
            .filter(|(_, line)| !line.starts_with('|'))
            .map(|(at, line)| (at + 1, line.split('#').next().unwrap_or("")))
            .map(|(at, line)| (at, line.split_whitespace().collect::<Vec<_>>()))
            .filter(|(_, words)| !words.is_empty())
            .collect();
        let zones: BTreeMap<String, Arc<TimeZone>> = lines
            .iter()
            .filter(|(_, words)| words[0] == "zone" && words.len() == 3)
            .map(|(_, words)| match TimeZone::get(words[2]) {
                Ok(zone) => Ok((words[1].to_owned(), Arc::new(zone))),
                Err(error) => Err(error.to_string()),
            })
            .collect::<Result<_>>()?;
        let utc = Arc::new(TimeZone::UTC);
        let zone_of = move |key: &EntityKey| zones.get(key.as_str()).unwrap_or(&utc).clone();
        let mut session = Session {
            spec: FeatureSpec {
                windows: vec!["1h/1m".parse().map_err(|error| format!("{error}"))?],
                pane_rows: PaneRows::Emit,
                emit_events: true,
                cadence: None,
                ..FeatureSpec::default()
            },
            registry: Arc::new(Registry::new(Box::new(zone_of))),
            inputs: BTreeMap::new(),
            show: vec![Level::Creative],
            expects: Vec::new(),
        };
        let mut pending = Inputs::default();
        let mut at = 0;
        while at < lines.len() {
            let (number, words) = &lines[at];
            let problem = |problem: String| format!("line {number}: {problem}");
            if words[0] == "times" {
                let end = lines[at..].iter().position(|(_, words)| words[0] == "end");
                let end = at + end.ok_or_else(|| problem("`end` is missing".to_owned()))?;
                let [_, count, span, "from", start] = words[..] else {
                    return Err(problem("write `times COUNT SPAN from TIME`".to_owned()));
                };
                let count = count.parse().map_err(|error| problem(format!("{error}")))?;
                let (span, start) = (span_us(span)?, time(start, None)?);
                for round in 0..count {
                    let round = Round { start: start + round * span, round, count };
                    for (number, words) in &lines[at + 1..end] {
                        session
                            .line(*number, words, Some(round), &mut pending)
                            .map_err(|problem| format!("line {number}: {problem}"))?;
                    }
                }
                at = end;
            } else {
                session.line(*number, words, None, &mut pending).map_err(problem)?;
            }
            at += 1;
        }
        let left = pending.events.len() + pending.reports.len();
        if left > 0 { Err(format!("{left} events after the last tick")) } else { Ok(session) }
    }

    fn line(
        &mut self,
        number: usize,
        words: &[&str],
        round: Option<Round>,
        pending: &mut Inputs,
    ) -> Result<()> {
        match words {
            ["window", windows @ ..] => {
                let windows = windows.iter().map(|text| text.parse());
                self.spec.windows =
                    windows.collect::<std::result::Result<_, _>>().map_err(|e| format!("{e}"))?;
            }
            ["cadence", "none"] => self.spec.cadence = None,
            ["cadence", busy, idle] => {
                let ms = |text| Ok::<u64, String>(span_us(text)? as u64 / 1_000);
                self.spec.cadence = Some(Cadence { busy_ms: ms(busy)?, idle_ms: ms(idle)? });
            }
            ["show", levels @ ..] => {
                let level = |name: &&str| {
                    let found = Level::ALL.into_iter().find(|level| level.name() == *name);
                    found.ok_or_else(|| format!("`{name}` is not a level"))
                };
                self.show = levels.iter().map(level).collect::<Result<_>>()?;
            }
            ["zone", _, _] => {}
            ["attribution", accounts, window] => {
                let window = window.parse().map_err(|error| format!("{error}"))?;
                let accounts = (*accounts).to_owned();
                self.spec.attribution.push(AttributionRule { accounts, window });
            }
            ["feed", at, creative, kind, fields @ ..] => {
                let at = time(at, round)?;
                pending.events.push(self.event(at, creative, kind, fields, round)?);
            }
            ["report", as_of, creative, start, end, fields @ ..] => {
                let mut values = Fields::read(fields, round)?;
                let version = ReportVersion {
                    as_of: time(as_of, round)?,
                    sequence: values.take("seq")?.unwrap_or(0) as u64,
                    totals: values.stats("n")?,
                };
                let attribution = values.0.remove("attribution").unwrap_or_default();
                let attribution = attribution.parse().map_err(|error| format!("{error}"))?;
                values.none_left()?;
                let (start, end) = (time(start, round)?, time(end, round)?);
                let key = ReportKey { creative: self.creative(creative)?, start, end, attribution };
                pending.reports.push(ReportRow { key, version });
            }
            ["tick", at] => {
                let tick = tick_of_us(time(at, round)?);
                if self.inputs.last_key_value().is_some_and(|(last, _)| *last >= tick) {
                    return Err("ticks must ascend".to_owned());
                }
                self.inputs.insert(tick, std::mem::take(pending));
            }
            ["expect", ..] if round.is_none() => {
                let newest = self.inputs.last_key_value().map_or(0, |(tick, _)| *tick);
                self.expects.push((number, newest));
            }
            _ => return Err(format!("`{}` is not a command", words.join(" "))),
        }
        Ok(())
    }

    fn creative(&self, key: &str) -> Result<EntityId> {
        let key: EntityKey = key.parse().map_err(|error| format!("{error}"))?;
        Ok(self.registry.intern(&key))
    }

    fn event(
        &self,
        at: EventTime,
        creative: &str,
        kind: &str,
        fields: &[&str],
        round: Option<Round>,
    ) -> Result<Event> {
        let named = EventKind::ALL.into_iter().find(|have| have.name() == kind);
        let kind = named.ok_or_else(|| format!("`{kind}` is not a kind"))?;
        let mut values = Fields::read(fields, round)?;
        let counted = values.take("n")?.unwrap_or(1);
        let mut delta = values.stats("")?;
        match kind {
            EventKind::Impression => delta.impressions += counted,
            EventKind::Click => delta.clicks += counted,
            EventKind::Conversion => delta.conversions += counted,
            EventKind::Cost | EventKind::Report => {}
        }
        let user = values.0.remove("user").map_or(NO_USER, |text| xxh3_64(text.as_bytes()));
        let id = values.0.remove("id").map_or(NO_ID, |text| xxh3_64(text.as_bytes()));
        values.none_left()?;
        Ok(Event { time: at, creative: self.creative(creative)?, kind, delta, user, id })
    }
}

/// `name=value` pairs.
struct Fields<'a>(BTreeMap<&'a str, String>);

impl<'a> Fields<'a> {
    fn read(words: &[&'a str], round: Option<Round>) -> Result<Fields<'a>> {
        let mut fields = BTreeMap::new();
        for word in words {
            let (name, value) =
                word.split_once('=').ok_or_else(|| format!("`{word}` is not NAME=VALUE"))?;
            let value = match (value.split_once(".."), round) {
                (Some((first, last)), Some(round)) => {
                    let number =
                        |text: &str| text.parse::<i64>().map_err(|e| format!("`{text}`: {e}"));
                    let (first, last) = (number(first)?, number(last)?);
                    let step = (last - first) * round.round / (round.count - 1).max(1);
                    (first + step).to_string()
                }
                _ => value.replace('@', &round.map_or(0, |round| round.round).to_string()),
            };
            fields.insert(name, value);
        }
        Ok(Fields(fields))
    }

    fn take(&mut self, name: &str) -> Result<Option<i64>> {
        let value = self.0.remove(name);
        value.map(|text| text.parse().map_err(|e| format!("{name}={text}: {e}"))).transpose()
    }

    fn money(&mut self, name: &str) -> Result<i64> {
        let value = self.0.remove(name).unwrap_or_else(|| "0".to_owned());
        let units: f64 = value.parse().map_err(|e| format!("{name}={value}: {e}"))?;
        Ok((units * 1e6).round() as i64)
    }

    /// `impressions` is the field that holds impressions, if any does.
    fn stats(&mut self, impressions: &str) -> Result<Stats> {
        Ok(Stats {
            impressions: self.take(impressions)?.unwrap_or(0),
            clicks: self.take("clicks")?.unwrap_or(0),
            conversions: self.take("conv")?.unwrap_or(0),
            cost_micros: self.money("cost")?,
            revenue_micros: self.money("revenue")?,
        })
    }

    fn none_left(&self) -> Result<()> {
        self.0.keys().next().map_or(Ok(()), |name| Err(format!("`{name}` is not a field")))
    }
}

fn span_us(text: &str) -> Result<i64> {
    text.parse::<Span>().map(Span::us).map_err(|error| error.to_string())
}

fn time(text: &str, round: Option<Round>) -> Result<EventTime> {
    match (text.strip_prefix('+'), round) {
        (Some(span), Some(round)) => Ok(round.start + span_us(span)?),
        _ => text
            .parse::<jiff::Timestamp>()
            .map(jiff::Timestamp::as_microsecond)
            .map_err(|error| format!("`{text}`: {error}")),
    }
}

/// The script with what came out below every `expect`.
pub(crate) fn print(text: &str, session: &Session, output: &Output) -> String {
    let mut expects = session.expects.iter();
    let (mut printed, mut from) = (String::new(), 0);
    for (at, line) in text.lines().enumerate() {
        if line.starts_with('|') {
            continue;
        }
        printed += line;
        printed.push('\n');
        if line.split_whitespace().next() == Some("expect") {
            let (number, until) = expects.next().copied().unwrap_or_default();
            assert_eq!(number, at + 1, "expects come in order");
            let said = line.split('#').next().unwrap_or("");
            let what: Vec<&str> = said.split_whitespace().skip(1).collect();
            for line in outputs(session, output, from, until, &what) {
                printed += "| ";
                printed += &line;
                printed.push('\n');
            }
            from = until + 1;
        }
    }
    printed
}

fn outputs(
    session: &Session,
    output: &Output,
    from: Tick,
    until: Tick,
    what: &[&str],
) -> Vec<String> {
    let (keys, kinds): (Vec<&str>, Vec<&str>) = what.iter().partition(|word| word.contains('/'));
    let (parts, kinds): (Vec<&str>, Vec<&str>) =
        kinds.iter().partition(|word| PARTS.contains(word));
    let wanted = |kind: &str| kinds.is_empty() || kinds.contains(&kind);
    let shown = |key: &EntityKey| {
        if keys.is_empty() {
            session.show.contains(&key.level())
        } else {
            keys.contains(&key.as_str())
        }
    };
    let ticks = from..=until;
    let mut view = RegistryView::new(session.registry.clone());
    let mut lines = Vec::new();
    if wanted("closed") {
        let here = output
            .panes
            .iter()
            .filter(|((_, _, key), (_, tick))| ticks.contains(tick) && shown(key));
        for ((window, end, key), (sums, tick)) in here {
            let window = session.spec.windows[usize::from(*window)];
            let mut line = format!("closed {window} to {}, {key}: {}", at(*end), say(sums));
            if us_of_tick(*tick) != *end {
                let _ = write!(line, " (known at {})", at(us_of_tick(*tick)));
            }
            lines.push(line);
        }
    }
    if wanted("rows") {
        for (tick, rows) in output.frames.iter().filter(|(tick, _)| ticks.contains(tick)) {
            let mut rows: Vec<_> = rows.iter().filter(|(key, _)| shown(key)).collect();
            rows.sort_by(|(a, _), (b, _)| a.cmp(b));
            for (key, row) in rows {
                let row = features(session, row, &parts);
                lines.push(format!("row at {}, {key}: {row}", at(us_of_tick(*tick))));
            }
        }
    }
    if wanted("refused") {
        for (tick, event, why) in output.refusals.iter().filter(|(tick, ..)| ticks.contains(tick)) {
            let key = &view.info(event.creative).key;
            lines.push(format!(
                "refused at {}, {}: {} {key} {} {}",
                at(us_of_tick(*tick)),
                why.code(),
                at(event.time),
                event.kind.name(),
                say(&event.delta)
            ));
        }
    }
    if wanted("refused") {
        let here = output.refused_reports.iter().filter(|(tick, ..)| ticks.contains(tick));
        for (tick, row, why) in here {
            let (key, interval) = (&view.info(row.key.creative).key, row.key);
            lines.push(format!(
                "refused at {}, {}: report {key} {} to {} {}",
                at(us_of_tick(*tick)),
                why.code(),
                at(interval.start),
                at(interval.end),
                say(&row.version.totals)
            ));
        }
    }
    if wanted("held")
        && let Some(held) = output.held_after.get(&until)
    {
        lines.push(format!("held: {held}"));
    }
    lines
}

fn at(time: EventTime) -> String {
    jiff::Timestamp::from_microsecond(time).map_or_else(|_| time.to_string(), |t| t.to_string())
}

fn say(stats: &Stats) -> String {
    let counts = [("n", stats.impressions), ("clicks", stats.clicks), ("conv", stats.conversions)];
    let money = [("cost", stats.cost_micros), ("revenue", stats.revenue_micros)];
    let counts = counts.into_iter().map(|(name, count)| (count, format!("{name}={count}")));
    let money =
        money.into_iter().map(|(name, micros)| (micros, format!("{name}={}", micros as f64 / 1e6)));
    let words = counts.chain(money).filter(|(value, _)| *value != 0).map(|(_, word)| word);
    let words: Vec<String> = words.collect();
    if words.is_empty() { "nothing".to_owned() } else { words.join(" ") }
}

/// Parts of an evaluated row.
const PARTS: [&str; 5] = ["sums", "rates", "reach", "fatigue", "anomaly"];

/// The key figures of an evaluated row, without those that say nothing; only `parts` if any.
fn features(session: &Session, row: &FeatureRow, parts: &[&str]) -> String {
    let [sums, rates, reach, wear, anomaly] =
        PARTS.map(|part| parts.is_empty() || parts.contains(&part));
    let mut said: Vec<String> = Vec::new();
    if sums {
        let windows = session.spec.windows.iter().zip(&row.windows);
        said.extend(windows.map(|(window, sums)| format!("{window} {}", say(sums))));
    }
    for (name, rate) in [("ctr", &row.ctr), ("cvr", &row.cvr)] {
        if rates && rate.trials != 0 {
            said.push(format!("{name} {:.5} ({:.5}-{:.5})", rate.mean, rate.low, rate.high));
        }
    }
    if reach && row.reach.users > 0.0 {
        said.push(format!("reach {:.1} x {:.2}", row.reach.users, row.reach.frequency));
    }
    if wear {
        said.push(fatigue(&row.fatigue));
    }
    if anomaly && row.anomaly.score > 0.0 {
        let alarm = if row.anomaly.alarm { " alarm" } else { "" };
        said.push(format!("anomaly {:.1}{alarm}", row.anomaly.score));
    }
    said.retain(|part| !part.is_empty());
    if said.is_empty() { "nothing".to_owned() } else { said.join("; ") }
}

fn fatigue(fatigue: &Fatigue) -> String {
    if fatigue.state == FatigueState::Insufficient {
        return String::new();
    }
    let onset = match fatigue.days_to_onset {
        None => String::new(),
        Some(0.0) => ", past onset".to_owned(),
        Some(days) => format!(", onset in {days:.1} d"),
    };
    let (state, probability) = (fatigue.state.name(), fatigue.probability);
    let (ratio, baseline) = (fatigue.ratio, fatigue.baseline_ctr);
    format!("{state} {ratio:.3} of {baseline:.5} (p {probability:.3}{onset})")
}
