//! Foreign layouts through their mappings: what the shipped ones mean, and what a mapping can say.

use omnify_operators::model::{DAY_US, EventKind, Stats};

use super::*;

#[test]
fn the_dsp_log_ignores_bids_and_charges_impressions() {
    let text = "bid_id,timestamp,log_type,ipinyou_id,creative_id,paying_price,advertiser_id\n\
                b1,1382752800,0,u1,77,,9\n\
                b1,1382752801,1,u1,77,192,9\n\
                b1,1382752805,2,u1,77,192,9\n\
                b2,1382752806,1,null,77,71,9\n\
                b3,1382752807,5,u1,77,71,9\n";
    let (_folder, path) = file("log.csv", text);
    let door = door();
    let batch = read(&path, &mapping("dsp_log"), &door);
    assert_eq!((batch.rows, batch.ignored), (5, 1));
    assert_eq!(reasons(&batch), ["unknown_kind"]);
    let [shown, clicked, other] = batch.events.as_slice() else { panic!("{batch:?}") };
    assert_eq!(key(&door, shown.creative), "ipinyou/ipinyou/9/all/all/77");
    assert_eq!(shown.time, 1_382_752_801_000_000);
    assert_eq!(shown.kind, EventKind::Impression);
    // 192 fen CPM are 1.92 CNY for a thousand: 1920 micros each.
    assert_eq!(shown.delta, Stats { impressions: 1, cost_micros: 1920, ..Stats::ZERO });
    assert_eq!(clicked.delta, Stats { clicks: 1, ..Stats::ZERO });
    assert_eq!(clicked.user, shown.user);
    assert_ne!(clicked.id, shown.id, "the kind is part of the id");
    assert_eq!(other.user, 0, "null names no user");
    assert!(shown.id != 0 && other.id != shown.id);
}

#[test]
fn the_daily_report_restates_and_repeats() {
    let head = "month,day,campaign_number,user_engagement,banner,placement,displays,cost,clicks,revenue,post_click_conversions,post_click_sales_amount";
    let text = format!(
        "{head}\n\
         April,1,camp 1,High,160 x 600,def,20170,26.7824,158,28.9717,23,1972.4602\n\
         April,1,camp 1,High,160 x 600,#N/A,4,0.006,0,0,0,0\n\
         April,1,camp 1,High,160 x 600,def,20170,26.7824,158,28.9717,23,1972.4602\n\
         April,1,camp 1,High,160 x 600,def,20180,26.7824,159,28.9717,23,1972.4602\n\
         May,31,camp 1,High,160 x 600,def,1,0.5,2,0,0,0\n"
    );
    let (_folder, path) = file("report.csv", text);
    let door = door();
    let batch = read(&path, &mapping("daily_report"), &door);
    assert_eq!(batch.rows, 5);
    assert_eq!(reasons(&batch), ["clicks_over_impressions"]);
    assert_eq!(batch.dead.iter().map(|letter| letter.row).collect::<Vec<_>>(), [5]);
    let [first, unnamed, again, restated] = batch.reports.as_slice() else { panic!("{batch:?}") };
    let creative = |id| key(&door, id);
    assert_eq!(creative(first.key.creative), "advertiser/display/main/camp 1/High def/160 x 600");
    assert_eq!(
        creative(unnamed.key.creative),
        "advertiser/display/main/camp 1/High unknown/160 x 600"
    );
    assert_eq!(first.key.start, 1_585_699_200_000_000, "2020-04-01");
    assert_eq!(first.key.end, first.key.start + DAY_US);
    assert_eq!(first.version.as_of, first.key.end, "known at the end of the day");
    assert_eq!(first.version.totals.cost_micros, 26_782_400);
    assert_eq!(first.version.totals.revenue_micros, 28_971_700);
    assert_eq!(first.version.totals.conversions, 23);
    assert_eq!((again.key, again.version.totals), (first.key, first.version.totals));
    assert_eq!(restated.key, first.key);
    assert!(restated.version.sequence > first.version.sequence, "the later row wins");
}

#[test]
fn mappings_read_separators_decimal_commas_zones_and_slashes() {
    let text = r#"
        name = "export"
        [format]
        separator = "\t"
        decimal = ","
        null = ["", "--"]
        slash = "_"
        [entity]
        tenant = { value = "acme" }
        platform = { value = "search" }
        account = { column = "Account" }
        campaign = { column = "Campaign" }
        ad_group = { column = "Ad group", missing = "none" }
        creative = { template = "{Size} {Ad}" }
        [reports]
        start = { column = "Day", format = "%d.%m.%Y", zone = "Europe/Berlin" }
        interval = "day"
        as_of = { column = "Exported", format = "rfc3339", optional = true }
        attribution = { template = "{Click days}d_click", optional = true }
        impressions = { column = "Impr." }
        clicks = { column = "Clicks" }
        cost = { column = "Cost", unit_micros = 1_000_000 }
    "#;
    let mapping = Mapping::parse("export.toml", text).unwrap();
    let rows = "\u{feff}Day\tAccount\tCampaign\tAd group\tSize\tAd\tImpr.\tClicks\tCost\tClick days\tExported\r\n\
                29.03.2020\ta1\tBrand / DE\t--\t300x250\t\"two\nlines\"\t10\t1\t1234,5\t7\t2020-04-01T00:00:00Z\r\n\
                29.03.2020\ta1\tBrand / DE\t--\t300x250\tone\t10\t1\t1234,5\t30\t\r\n";
    let (_folder, path) = file("export.tsv", rows);
    let door = door();
    let batch = read(&path, &mapping, &door);
    assert_eq!(reasons(&batch), ["bad_name"], "a line break cannot stand in a name");
    let [report] = batch.reports.as_slice() else { panic!("{batch:?}") };
    assert_eq!(key(&door, report.key.creative), "acme/search/a1/Brand _ DE/none/300x250 one");
    assert_eq!((report.key.end - report.key.start) / 3_600_000_000, 23, "the clocks go forward");
    assert_eq!(report.version.totals.cost_micros, 1_234_500_000);
    assert_eq!(report.key.attribution.to_string(), "30d_click");
    assert_eq!(report.version.as_of, report.key.end, "without a statement's time, the end");
}

#[test]
fn users_count_the_same_as_numbers_and_texts_and_ids_belong_to_accounts() {
    let row = |account: &str, user: &str| {
        format!(
            "{{\"ts_us\":1,\"tenant\":\"t\",\"platform\":\"p\",\"account\":\"{account}\",\"campaign\":\"c\",\"ad_group\":\"g\",\"creative\":\"x\",\"kind\":\"click\",\"user\":{user},\"event_id\":1}}\n"
        )
    };
    let text = [row("a", "42"), row("a", "\"42\""), row("b", "42")].concat();
    let (_folder, path) = file("data.json", text);
    let batch = read(&path, &mapping("native"), &door());
    let [number, text, other] = batch.events.as_slice() else { panic!("{batch:?}") };
    assert_eq!(number.user, text.user);
    assert_eq!(number.user, other.user);
    assert_eq!(number.id, text.id);
    assert_ne!(number.id, other.id, "two accounts may use the same event id");
}
