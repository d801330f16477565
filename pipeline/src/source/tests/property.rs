//! Whatever the bytes: nothing panics, and every row is accounted for ([`drain`] checks it).

use proptest::prelude::*;

use super::*;
use crate::decode::Push;

/// Bytes that look enough like rows to get past the first check.
fn rowish() -> impl Strategy<Value = Vec<u8>> {
    let token = prop_oneof![
        prop::sample::select(vec![
            "1000",
            "t",
            "p",
            "c",
            "x",
            "0",
            "1",
            "9",
            "-1",
            "NaN",
            "1e400",
            ",",
            ",",
            ",",
            "\n",
            "\n",
            "\r\n",
            "\"",
            "\"\"",
            "{",
            "}",
            "[",
            "]",
            ":",
            "\"ts_us\"",
            "\"kind\"",
            "\"click\"",
            "null",
            "é",
            "\u{feff}",
            "/",
            "\t",
            " ",
        ])
        .prop_map(|text| text.as_bytes().to_vec()),
        prop::collection::vec(any::<u8>(), 0..4),
    ];
    prop::collection::vec(token, 0..120).prop_map(|tokens| tokens.concat())
}

fn small() -> Limits {
    Limits { line_bytes_max: 96, dead_bytes_max: 16, ..Limits::default() }
}

fn consume(bytes: &[u8], name: &str) -> Option<Batch> {
    let (_folder, path) = file("data", bytes);
    let options = ReadOptions { batch_rows: 3, ..ReadOptions::default() };
    let mut source = open(&path, &mapping(name), &door_with(small()), options).ok()?;
    Some(drain(source.as_mut()).0)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn text_never_panics(bytes in rowish()) {
        let csv = [format!("{GENERIC}\n").as_bytes(), &bytes].concat();
        let batch = consume(&csv, "generic").expect("the header is right");
        prop_assert!(batch.dead.iter().all(|letter| letter.bytes.len() <= 16));
        for name in ["native", "dsp_log", "daily_report"] {
            consume(&bytes, name);
        }
        // A row of NDJSON is a line that is not empty, and nothing else.
        let json = [b"{}\n", bytes.as_slice()].concat();
        let lines = json.split(|byte| *byte == b'\n');
        let lines = lines.filter(|line| line.iter().any(|byte| *byte != b'\r')).count();
        let batch = consume(&json, "native").expect("a brace makes it JSON");
        prop_assert_eq!(batch.rows, lines as u64);
    }

    #[test]
    fn compressed_damage_never_panics(bytes in rowish(), at in any::<prop::sample::Index>(), bit in 0u32..8) {
        let text = [format!("{GENERIC}\n1000,t,p,c,x,u,0,5,0\n").as_bytes(), &bytes].concat();
        for mut packed in [gzip(&text), zstd::encode_all(text.as_slice(), 1).unwrap()] {
            let at = at.index(packed.len());
            packed[at] ^= 1u8 << bit;
            consume(&packed, "generic");
            consume(&packed[..at], "generic");
        }
    }

    #[test]
    fn pushes_never_panic(bytes in rowish()) {
        let mut push = Push::native(door_with(small()), "push");
        for body in [bytes.clone(), [b"[".as_slice(), &bytes].concat()] {
            let batch = push.decode(&body, Some(500));
            prop_assert_eq!(batch.accounted(), batch.rows);
        }
    }

    #[test]
    fn parquet_damage_never_panics(at in any::<prop::sample::Index>(), bit in 0u32..8, cut in any::<bool>()) {
        let mut bytes = super::columnar::sample();
        let at = at.index(bytes.len());
        bytes[at] ^= 1u8 << bit;
        consume(if cut { &bytes[..at] } else { &bytes }, "generic");
    }
}
