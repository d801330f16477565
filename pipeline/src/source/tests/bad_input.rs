//! Every named kind of bad input: the reason, the place, the original bytes, and what goes on.

use super::*;
use crate::decode::Push;
use crate::source::ColumnFault;

/// A generic CSV with one good row before and after each of `rows`.
fn around(rows: &[&[u8]]) -> Vec<u8> {
    let good: &[u8] = b"1000,t,p,c,x,u,0,5,0\n";
    let mut text = format!("{GENERIC}\n").into_bytes();
    text.extend_from_slice(good);
    for row in rows {
        text.extend_from_slice(row);
        text.push(b'\n');
        text.extend_from_slice(good);
    }
    text
}

#[test]
fn each_bad_row_has_its_reason_its_row_and_its_bytes() {
    let cases: [(&[u8], &str); 19] = [
        (b"soon,t,p,c,x,u,0,5,0", "bad_time"),
        (b",t,p,c,x,u,0,5,0", "missing_field"),
        (b"-5,t,p,c,x,u,0,5,0", "out_of_range"),
        (b"99999999999999999,t,p,c,x,u,0,5,0", "out_of_range"),
        (b"1000,,p,c,x,u,0,5,0", "missing_field"),
        (b"1000,t,p,c,,u,0,5,0", "missing_field"),
        (b"1000,t,p,a/b,x,u,0,5,0", "bad_name"),
        (b"1000,t,p,c,\xff\xfe,u,0,5,0", "invalid_utf8"),
        (b"1000,t,p,c,x,\xff,0,5,0", "invalid_utf8"),
        (b"1000,t,p,c,x,u,9,5,0", "unknown_kind"),
        (b"1000,t,p,c,x,u,,5,0", "missing_field"),
        (b"1000,t,p,c,x,u,0,NaN,0", "not_finite"),
        (b"1000,t,p,c,x,u,0,-inf,0", "not_finite"),
        (b"1000,t,p,c,x,u,0,-5,0", "negative"),
        (b"1000,t,p,c,x,u,0,five,0", "bad_number"),
        (b"1000,t,p,c,x,u,0,9223372036854775807,0", "out_of_range"),
        (b"1000,t,p,c,x,u,0,5,-1", "negative"),
        (b"1000,t,p,c,x", "wrong_columns"),
        (b"1000,t,p,c,x,u,0,5,0,more", "wrong_columns"),
    ];
    let rows: Vec<&[u8]> = cases.iter().map(|(row, _)| *row).collect();
    let (_folder, path) = file("bad.csv", around(&rows));
    let batch = read(&path, &mapping("generic"), &door());
    assert_eq!(batch.events.len(), cases.len() + 1, "good rows around are not touched");
    assert_eq!(batch.dead.len(), cases.len());
    for (index, (letter, (bytes, reason))) in batch.dead.iter().zip(cases).enumerate() {
        assert_eq!(letter.reason, reason, "{letter:?}");
        assert_eq!(letter.bytes, bytes);
        assert_eq!(letter.length, bytes.len() as u64);
        assert_eq!(letter.row, 2 * index as u64 + 2);
        assert_eq!(*letter.source, *path.to_string_lossy());
        assert!(!letter.detail.is_empty());
    }
    assert_eq!(batch.dead[13].detail, "events.cost (column cost_micros) is negative (-5)");
    assert_eq!(batch.dead[13].tenant.as_deref(), Some("t"));
}

#[test]
fn unknown_tenants_are_refused_and_get_no_partition() {
    let limits = Limits { tenants: ["acme".to_owned()].into(), ..Limits::default() };
    let text = format!("{GENERIC}\n1,acme,p,c,x,u,0,5,0\n2,evil,p,c,x,u,0,5,0\n");
    let (_folder, path) = file("data.csv", text);
    let door = door_with(limits);
    let batch = read(&path, &mapping("generic"), &door);
    assert_eq!(batch.events.len(), 1);
    assert_eq!(reasons(&batch), ["unknown_tenant"]);
    assert_eq!(batch.dead[0].tenant, None);
    assert!(door.registry.lookup(&"evil".parse().unwrap()).is_none());
}

#[test]
fn a_line_of_ten_megabytes_is_cut_and_the_stream_goes_on() {
    let long = vec![b'x'; 10 << 20];
    for (name, before, after) in [
        ("data.csv", format!("{GENERIC}\n1,t,p,c,x,u,0,5,0\n"), "2,t,p,c,x,u,0,5,0\n".to_owned()),
        ("data.json", json_row(1), json_row(2)),
    ] {
        let text = [before.as_bytes(), &long, b"\n", after.as_bytes()].concat();
        let (_folder, path) = file(name, text);
        let batch = read(&path, &mapping("generic"), &door());
        assert_eq!(batch.events.len(), 2, "{name}");
        assert_eq!(reasons(&batch), ["line_too_long"]);
        assert_eq!(batch.dead[0].length, 10 << 20);
        assert_eq!(batch.dead[0].bytes, vec![b'x'; Limits::default().dead_bytes_max]);
        assert_eq!(batch.dead[0].row, 2);
    }
}

fn json_row(time: u32) -> String {
    format!(
        "{{\"ts_us\":{time},\"tenant\":\"t\",\"platform\":\"p\",\"campaign\":\"c\",\"creative\":\"x\",\"kind\":0}}\n"
    )
}

#[test]
fn a_quote_that_never_closes_costs_one_line() {
    let limits = Limits { line_bytes_max: 4096, ..Limits::default() };
    for tail in [3, 1000] {
        let mut text = format!("{GENERIC}\n1,t,p,c,\"open,u,0,5,0\n");
        (0..tail).for_each(|n| text.push_str(&format!("{},t,p,c,x,u,0,5,0\n", n + 2)));
        let (_folder, path) = file("data.csv", text);
        let batch = read(&path, &mapping("generic"), &door_with(limits.clone()));
        assert_eq!(reasons(&batch), ["malformed"]);
        assert_eq!(batch.dead[0].bytes, b"1,t,p,c,\"open,u,0,5,0");
        assert_eq!(batch.events.len(), tail, "every line after it is read");
    }
}

#[test]
fn a_truncated_file_gives_its_rows_and_then_the_place() {
    let mut text = format!("{GENERIC}\n");
    (0..20_000).for_each(|n| text.push_str(&format!("{n},t,p,c,x{},u{n},0,5,0\n", n % 17)));
    for (name, whole) in [
        ("data.csv.gz", gzip(text.as_bytes())),
        ("data.csv.zst", zstd::encode_all(text.as_bytes(), 1).unwrap()),
    ] {
        let (_folder, path) = file(name, &whole[..whole.len() / 2]);
        let options = ReadOptions { batch_rows: 1000, ..ReadOptions::default() };
        let mut source = open(&path, &mapping("generic"), &door(), options).unwrap();
        let (batch, error) = drain(source.as_mut());
        let times: Vec<_> = batch.events.iter().map(|event| event.time).collect();
        assert!(times.len() > 1000, "{name}: {}", times.len());
        assert!(times.iter().copied().eq(0..times.len() as i64), "no row is missing before it");
        // Half a row may stand at the break: it is kept, and nothing else is refused.
        assert!(reasons(&batch).iter().all(|reason| *reason == "truncated"));
        assert!(batch.dead.len() <= 1);
        let Some(SourceError::Damaged { offset, length, .. }) = error else { panic!("{error:?}") };
        assert_eq!(length, whole.len() as u64 / 2);
        assert!(offset > 0 && offset <= length);
        let text = error.unwrap().to_string();
        assert!(text.contains(name) && text.contains("near byte") && text.contains("again"));
    }
}

#[test]
fn a_wrong_column_is_named_with_its_neighbour() {
    let (_folder, path) = file("data.csv", "ts_us,tennant,platform\n1,t,p\n");
    let error = open(&path, &mapping("generic"), &door(), ReadOptions::default()).err().unwrap();
    let text = error.to_string();
    assert!(
        text.contains("the mapping generic reads `entity.tenant` from the column `tenant`")
            && text.contains("did you mean `tennant`?")
            && text.contains("ts_us, tennant, platform"),
        "{text}"
    );
    let SourceError::Column(error) = error else { panic!("{error:?}") };
    assert!(matches!(error.fault, ColumnFault::Absent { .. }));
}

#[test]
fn broken_mappings_say_where() {
    let parse = |text: &str| Mapping::parse("m.toml", text).unwrap_err().to_string();
    let shipped = include_str!("../../../../config/mappings/generic.toml");
    Mapping::parse("m.toml", shipped).unwrap();
    let text = parse(&shipped.replace("platform = { column", "platform = { colunm"));
    assert!(text.contains("m.toml, line 8") && text.contains("`colunm`"), "{text}");
    let text = parse(&shipped.replace("format = \"unix_us\"", "format = \"unix_days\""));
    assert!(text.contains("`events.time`") && text.contains("unix_ms"), "{text}");
    let text = parse(&shipped.replace("\"impression\"", "\"imression\""));
    assert!(text.contains("`imression` is not a kind"), "{text}");
    let text = parse(&shipped.replace("unit_micros = 1, ", ""));
    assert!(text.contains("`events.cost`") && text.contains("unit_micros"), "{text}");
    let text = parse(&shipped.replace("{ column = \"tenant\" }", "{ }"));
    assert!(text.contains("`entity.tenant`") && text.contains("exactly one"), "{text}");
    let text = parse(&shipped.replace("column = \"tenant\"", "template = \"{tenant\""));
    assert!(text.contains("does not close"), "{text}");
    assert!(parse("name = \"x\"").contains("entity"));
    let text = Mapping::load("no/such.toml").unwrap_err().to_string();
    assert!(text.contains("no/such.toml") && text.contains("daily_report"), "{text}");
}

const EVENT: &str = r#"{"ts_us":1000,"tenant":"t","platform":"p","account":"a","campaign":"c","ad_group":"g","creative":"x","kind":"click","user":7,"event_id":"e1","cost_micros":5}"#;
const REPORT: &str = r#"{"type":"report","tenant":"t","platform":"p","account":"a","campaign":"c","ad_group":"g","creative":"x","start_us":0,"end_us":3600000000,"as_of_us":3700000000,"impressions":100,"clicks":10,"conversions":1,"cost_micros":5000,"revenue_micros":9000}"#;

#[test]
fn pushes_take_lines_and_arrays_of_both_kinds() {
    for body in [format!("{EVENT}\n\n{REPORT}\r\n"), format!(" [{EVENT}, {REPORT}]")] {
        let door = door();
        let batch = Push::native(door.clone(), "/v1/events").decode(body.as_bytes(), None);
        assert_eq!((batch.rows, batch.events.len(), batch.reports.len()), (2, 1, 1), "{batch:?}");
        assert_eq!(batch.events[0].delta.clicks, 1);
        assert_eq!(batch.reports[0].version.as_of, 3_700_000_000);
        assert_eq!(batch.reports[0].version.totals.revenue_micros, 9000);
        assert_eq!(key(&door, batch.events[0].creative), "t/p/a/c/g/x");
        assert_eq!(batch.span, Some((1000, 3_700_000_000)));
    }
}

#[test]
fn bad_pushes_are_dead_letters() {
    let mut push = Push::native(door(), "/v1/events");
    let mut reason = |body: &[u8], not_after| {
        let batch = push.decode(body, not_after);
        assert_eq!((batch.rows, batch.accounted()), (1, 1), "{batch:?}");
        (reasons(&batch).first().copied(), batch.dead.first().map_or(0, |letter| letter.row))
    };
    assert_eq!(reason(b"{\"ts_us\":", None), (Some("malformed"), 1));
    assert_eq!(reason(b"[{},", None), (Some("malformed"), 2));
    assert_eq!(reason(b"[1]", None), (Some("malformed"), 3));
    assert_eq!(reason(b"\"text\"", None), (Some("malformed"), 4));
    assert_eq!(reason(b"{\"kind\":\"\xff\"}", None), (Some("invalid_utf8"), 5));
    assert_eq!(reason(b"[\xff]", None), (Some("invalid_utf8"), 6));
    let row = |from: &str, to: &str| EVENT.replace(from, to).into_bytes();
    assert_eq!(reason(&row("1000", "2000"), Some(1999)).0, Some("future_time"));
    assert_eq!(reason(&row("1000", "1999"), Some(1999)).0, None);
    assert_eq!(reason(&row("\"click\"", "\"report\""), None).0, Some("unknown_kind"));
    assert_eq!(reason(&row("{", "{\"type\":\"metric\","), None).0, Some("unknown_kind"));
    assert_eq!(reason(&row("\"x\"", "[1]"), None).0, Some("bad_number"));
    assert_eq!(reason(&row("\"x\"", "\"a\\nb\""), None).0, Some("bad_name"));
    assert_eq!(reason(&row(":5}", ":1e300}"), None).0, Some("out_of_range"));
    assert_eq!(reason(&row(":5}", ":null}"), None).0, None);
    let report = |from: &str, to: &str| REPORT.replace(from, to).into_bytes();
    assert_eq!(reason(&report(":10,", ":101,"), None).0, Some("clicks_over_impressions"));
    assert_eq!(reason(&report(":3600000000", ":0"), None).0, Some("empty_interval"));
    let window = |name: &str| report("9000}", &format!("9000,\"attribution\":\"{name}\"}}"));
    assert_eq!(reason(&window("7d_click"), None).0, None);
    assert_eq!(reason(&window("7d"), None).0, Some("unknown_attribution"));
    // A day that is running ends in the future; one that begins there is refused.
    assert_eq!(reason(REPORT.as_bytes(), Some(0)).0, None);
    assert_eq!(reason(&report(":0,", ":1,"), Some(0)).0, Some("future_time"));
    assert_eq!(reason(&report(":100,", ":100.5,"), None).0, Some("bad_number"));
    assert_eq!(reason(&report(":100,", ":-100,"), None).0, Some("negative"));
    assert_eq!(reason(REPORT.as_bytes(), None).0, None);
}

#[test]
fn costs_may_be_negative_where_money_comes_back() {
    let credit = EVENT.replace("\"click\"", "\"cost\"").replace(":5}", ":-5}");
    let batch = Push::native(door(), "push").decode(credit.as_bytes(), None);
    assert_eq!(batch.events[0].delta.cost_micros, -5);
    assert_eq!(batch.events[0].delta.clicks, 0);
}

#[test]
fn a_json_array_in_a_file_is_refused_with_the_way_out() {
    let (_folder, path) = file("data.json", format!("[{EVENT}]"));
    let error = open(&path, &mapping("native"), &door(), ReadOptions::default()).err().unwrap();
    assert!(error.to_string().contains("one object for each line"), "{error}");
}
