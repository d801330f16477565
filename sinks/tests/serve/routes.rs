//! What each route answers, and that the description of the API and the routes are the same.

use axum::body::Body;
use axum::http::{Method, Request, StatusCode, header};
use omnify_decision::action::Setting;
use omnify_decision::control::Outcome;
use omnify_sinks::serve::{AppState, Board, OPENAPI, Problem, Watermarks, router};
use serde_json::Value;

use crate::support::{
    action, board, config, counters, entities, frame, get, proposals, reply, request, token, tokens,
};

#[tokio::test]
async fn rows_are_honest_about_what_is_known() {
    let entities = entities();
    let mut board = board(&entities);
    let mut now = counters(7);
    now.watermarks = Watermarks { fresh_until_us: Some(900), settled_until_us: None };
    board.update(&frame(&entities, 2));
    board.publish(2, now);
    let router = router(AppState::new(board.subscribe()));
    let row = get(&router, "/v1/features/acme/meta/act_acme/brand_acme").await.json();
    assert_eq!(row["as_of_tick"], 2);
    assert_eq!(row["fresh_until_us"], 900);
    assert_eq!(row["settled_until_us"], Value::Null);
    let hour = &row["windows"]["1h/1m"];
    assert_eq!(hour["impressions"], 2_000);
    assert_eq!(hour["ctr"], 0.01);
    assert_eq!(hour["cpa"], Value::Null, "no conversions, no CPA");
    assert_eq!(hour["settled_share"], Value::Null);
    assert_eq!(row["cvr"], Value::Null);
    assert_eq!(row["reach"], Value::Null);
    assert_eq!(row["fatigue"]["ratio"], Value::Null);
    assert_eq!(row["currency"], "USD");
    assert_eq!(row["settings"]["bid_micros"], 1_900_000, "known from the action's pre-image");
    assert_eq!(row["settings"]["budget_micros"], Value::Null);
    // 40 spent of 100, 10 % of the budget behind plan.
    assert_eq!(row["pacing"]["spent_micros"], 40_000_000);
    assert_eq!(row["pacing"]["planned_micros"], 50_000_000);
    assert!(row["maturity"].as_str().unwrap().contains("settled_until_us"));
    assert_eq!(row["completeness"], Value::Null, "its conversions count as they are");
    // What an account's own reports showed goes before what is said of all.
    let account = get(&router, "/v1/features/acme/meta/act_acme").await.json();
    assert_eq!(
        (&account["fresh_until_us"], &account["settled_until_us"]),
        (&2_000.into(), &1_000.into())
    );
    assert_eq!(
        (&account["completeness"]["share"], &account["completeness"]["window"]),
        (&0.8.into(), &"day".into())
    );
}

#[tokio::test]
async fn an_unknown_entity_is_told_how_far_the_path_is_right() {
    let router = router(AppState::new(board(&entities()).subscribe()));
    let near = get(&router, "/v1/features/acme/meta/act_acme/nope").await;
    assert_eq!(
        (near.status, near.error_code().as_str()),
        (StatusCode::NOT_FOUND, "unknown_entity")
    );
    assert!(near.json()["error"]["hint"].as_str().unwrap().contains("`acme/meta/act_acme` exists"));
    let far = get(&router, "/v1/features/nobody/meta/act").await;
    assert!(far.json()["error"]["hint"].as_str().unwrap().contains("level=tenant"));
    let bad = get(&router, "/v1/features/acme/meta").await;
    assert_eq!(bad.error_code(), "not_an_entity");
}

#[tokio::test]
async fn filters_and_orders() {
    let router = router(AppState::new(board(&entities()).subscribe()));
    let keys = async |query: &str| -> Vec<String> {
        let reply = get(&router, &format!("/v1/features?{query}")).await;
        assert_eq!(reply.status, StatusCode::OK, "{}", reply.body);
        let json = reply.json();
        let rows = json["rows"].as_array().unwrap();
        rows.iter().map(|row| row["entity"].as_str().unwrap().to_owned()).collect()
    };
    let all = keys("limit=1000").await;
    assert_eq!(all.len(), 3 * (2 + 2 * (1 + 1 + 3)));
    let first = all.iter().position(|key| key == "acme-2").unwrap();
    assert!(all[..first].iter().all(|key| key == "acme" || key.starts_with("acme/")), "{all:?}");
    assert_eq!(keys("tenant=acme&level=campaign").await.len(), 2);
    assert_eq!(keys("state=wearing_out").await.len(), 6);
    assert_eq!(keys("platform=tiktok").await.len(), 0);
    assert_eq!(keys("under=rival/meta/act_rival/sale_rival").await.len(), 5);
    assert_eq!(keys("under=rival&down_to=campaign").await.len(), 4);
    assert_eq!(keys("contains=SALE_acme").await.len(), 10);
    let sorted = keys("sort=pacing&level=campaign&limit=2").await;
    assert_eq!(sorted.len(), 2);
    for bad in [
        "level=planet",
        "limit=0",
        "limit=1001",
        "sort=luck",
        "nonsense=1",
        "window=3h&sort=cost",
        "under=a/b",
        "cursor=zz&sort=cost",
        "tenant=acme&under=rival",
    ] {
        let reply = get(&router, &format!("/v1/features?{bad}")).await;
        assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{bad}: {}", reply.body);
        assert_eq!(reply.error_code(), "bad_query");
    }
}

#[tokio::test]
async fn pages_neither_repeat_nor_miss_while_the_engine_publishes() {
    let entities = entities();
    let mut board = board(&entities);
    let router = router(AppState::new(board.subscribe()));
    for sort in ["key", "cost"] {
        let (mut seen, mut cursor) = (Vec::new(), String::new());
        for tick in 3.. {
            let path = format!("/v1/features?limit=4&sort={sort}&cursor={cursor}");
            let path = if cursor.is_empty() { path.replace("&cursor=", "") } else { path };
            let page = get(&router, &path).await.json();
            let rows = page["rows"].as_array().unwrap();
            seen.extend(rows.iter().map(|row| row["entity"].as_str().unwrap().to_owned()));
            if sort == "key" {
                board.update(&frame(&entities, tick));
                board.publish(tick, counters(tick));
            }
            match page["next"].as_str() {
                Some(next) => cursor = next.replace('/', "%2F").replace(':', "%3A"),
                None => break,
            }
        }
        assert_eq!(seen.len(), entities.len(), "{sort}");
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), entities.len(), "{sort} repeats");
    }
}

#[tokio::test]
async fn polling_is_cheap() {
    let entities = entities();
    let mut board = board(&entities);
    let router = router(AppState::new(board.subscribe()));
    for path in ["/v1/features", "/v1/decisions", "/v1/actions"] {
        let ask = |etag: &str| {
            let mut asked = request(path, None);
            asked.headers_mut().insert(header::IF_NONE_MATCH, etag.parse().unwrap());
            asked
        };
        let first = get(&router, path).await;
        let etag = first.header(header::ETAG).to_owned();
        assert!(etag.starts_with("W/\""), "{path}");
        let same = reply(&router, ask(&etag)).await;
        assert_eq!((same.status, same.body.as_str()), (StatusCode::NOT_MODIFIED, ""), "{path}");
        assert_eq!(same.header(header::ETAG), etag);
        board.publish(10, counters(9));
        let next = reply(&router, ask(&etag)).await;
        assert_eq!(next.status, StatusCode::OK, "{path}");
        assert_ne!(next.header(header::ETAG), etag);
    }
    let mut zipped = request("/v1/features", None);
    zipped.headers_mut().insert(header::ACCEPT_ENCODING, "gzip".parse().unwrap());
    let response = crate::support::send(&router, zipped).await;
    assert_eq!(response.headers()[header::CONTENT_ENCODING], "gzip");
    let body = axum::body::to_bytes(response.into_body(), 1 << 26).await.unwrap();
    let mut text = String::new();
    std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(&body[..]), &mut text).unwrap();
    assert_eq!(text, get(&router, "/v1/features").await.body);
}

#[tokio::test]
async fn decisions_and_actions_can_be_followed() {
    let entities = entities();
    let mut board = board(&entities);
    let router = router(AppState::new(board.subscribe()));
    let page = get(&router, "/v1/decisions?limit=5").await.json();
    let sequences: Vec<u64> = page["decisions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| item["sequence"].as_u64().unwrap())
        .collect();
    assert_eq!(sequences, [12, 11, 10, 9, 8]);
    let next = page["next"].as_u64().unwrap();
    let older = get(&router, &format!("/v1/decisions?before={next}")).await.json();
    assert_eq!(older["decisions"].as_array().unwrap().len(), 7);
    assert_eq!(older["next"], Value::Null);
    let acted = get(&router, "/v1/decisions?verdict=act&entity=acme").await.json();
    assert_eq!(acted["decisions"].as_array().unwrap().len(), 2);
    assert_eq!(
        get(&router, "/v1/decisions?after=12").await.json()["decisions"],
        Value::Array(vec![])
    );

    let before = get(&router, "/v1/actions").await.json();
    assert_eq!(before["actions"].as_array().unwrap().len(), 6);
    let campaign = entities.iter().find(|info| info.key.as_str().ends_with("sale_acme")).unwrap();
    let applied = Outcome::Applied { effective: Setting::Bid { bid_micros: 1_950_000 } };
    board.outcome(action(campaign, 1).id, &applied, 3);
    board.publish(3, counters(9));
    let revision = &before["revision"];
    let changed = get(&router, &format!("/v1/actions?after={revision}")).await.json();
    let changed = changed["actions"].as_array().unwrap();
    assert_eq!(changed.len(), 1);
    assert_eq!(changed[0]["state"], "applied");
    assert_eq!(changed[0]["effective"]["bid_micros"], 1_950_000);
    let row = get(&router, &format!("/v1/features/{}", campaign.key)).await.json();
    assert_eq!(row["settings"]["bid_micros"], 1_950_000);
    let flying = get(&router, "/v1/actions?state=in_flight").await.json();
    assert_eq!(flying["actions"].as_array().unwrap().len(), 5);
    assert_eq!(get(&router, "/v1/actions?state=lost").await.error_code(), "bad_query");
}

#[tokio::test]
async fn readiness_says_why_not() {
    let mut board = Board::new(config());
    let mut state = AppState::new(board.subscribe());
    state.present = Some(std::sync::Arc::new(|| 10_000));
    let router = router(state);
    assert_eq!(get(&router, "/healthz").await.status, StatusCode::OK);
    let reasons = async || {
        let reply = get(&router, "/readyz").await;
        let json = reply.json();
        assert_eq!(json["ready"], reply.status == StatusCode::OK);
        let reasons = json["reasons"].as_array().unwrap().clone();
        reasons.iter().map(|reason| reason["code"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(reasons().await, ["no_tick"]);
    board.publish(4_000, counters(1));
    assert_eq!(reasons().await, ["lagging"]);
    board.publish(9_999, counters(1));
    assert_eq!(reasons().await, [""; 0]);
    let mut broken = counters(5);
    broken.featured = 4;
    broken.problems = vec![Problem { code: "disk_full", text: "free some space".into() }];
    board.publish(10_000, broken);
    assert_eq!(reasons().await, ["conservation", "disk_full"]);
    let status = get(&router, "/v1/status").await.json();
    assert_eq!(status["conservation"]["difference"], 1);
}

#[tokio::test]
async fn the_description_and_the_routes_are_the_same() {
    let board = board(&entities());
    let router = router(AppState::new(board.subscribe()));
    let api: Value = serde_json::from_str(OPENAPI).unwrap();
    let paths = api["paths"].as_object().unwrap();
    // Every route of the description exists, with its methods and no others.
    for (path, methods) in paths {
        let path = path.replace("{file}", "app.js").replace("{entity}", "acme");
        for method in [Method::GET, Method::POST, Method::PUT, Method::DELETE] {
            let described = methods.get(method.as_str().to_lowercase()).is_some();
            let asked = Request::builder().method(method.clone()).uri(&path);
            let response = crate::support::send(&router, asked.body(Body::empty()).unwrap()).await;
            let known = response.status() != StatusCode::METHOD_NOT_ALLOWED
                && response.status() != StatusCode::NOT_FOUND;
            assert_eq!(known, described, "{method} {path}: {}", response.status());
        }
    }
    // Every route of the router is described.
    let source = include_str!("../../src/serve/router.rs");
    let routes: Vec<&str> =
        source.split(".route(\"").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
    assert!(routes.len() >= 14, "{routes:?}");
    for route in &routes {
        let described = route.replace("{*entity}", "{entity}");
        assert!(paths.contains_key(&described), "{route} is not in openapi.json");
    }
    assert_eq!(routes.len(), paths.len());
    // Every schema that is referred to exists, and every schema is referred to.
    let schemas = api["components"]["schemas"].as_object().unwrap();
    let names: Vec<&str> = OPENAPI
        .split("#/components/schemas/")
        .skip(1)
        .map(|rest| rest.split('"').next().unwrap())
        .collect();
    assert!(names.iter().all(|name| schemas.contains_key(*name)));
    assert!(schemas.keys().all(|name| names.contains(&name.as_str())), "an unused schema");
}

/// Checks that `value` has the fields that `schema` says, no more and no fewer.
fn matches(api: &Value, schema: &Value, value: &Value, at: &str) {
    if let Some(name) = schema["$ref"].as_str() {
        let schema = api.pointer(name.trim_start_matches('#')).unwrap();
        return matches(api, schema, value, at);
    }
    if let Some(either) = schema["oneOf"].as_array() {
        if !value.is_null() {
            matches(api, &either[0], value, at);
        }
        return;
    }
    let types = match &schema["type"] {
        Value::Array(types) => types.clone(),
        Value::Null => return,
        one => vec![one.clone()],
    };
    let own = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let fits = types.iter().any(|one| one == own || (one == "number" && own == "integer"));
    assert!(fits, "{at} is {own}, described as {types:?}");
    if let Some(known) = schema["enum"].as_array() {
        assert!(known.contains(value), "{at}: {value} is not in {known:?}");
    }
    if let (Some(items), Some(schema)) = (value.as_array(), schema.get("items")) {
        for item in items {
            matches(api, schema, item, &format!("{at}[]"));
        }
    }
    if let (Some(fields), Some(known)) = (value.as_object(), schema["properties"].as_object()) {
        for (name, field) in fields {
            let schema = known.get(name).unwrap_or_else(|| panic!("{at}.{name} is not described"));
            matches(api, schema, field, &format!("{at}.{name}"));
        }
        for name in schema["required"].as_array().unwrap() {
            let name = name.as_str().unwrap();
            assert!(fields.contains_key(name), "{at}.{name} is described and not there");
        }
    }
    if let (Some(fields), Some(schema)) = (value.as_object(), schema.get("additionalProperties"))
        && schema.is_object()
    {
        for (name, field) in fields {
            matches(api, schema, field, &format!("{at}.{name}"));
        }
    }
}

#[tokio::test]
async fn answers_have_the_shape_that_is_described() {
    let mut board = board(&entities());
    board.proposals(proposals().into_iter());
    board.publish(2, counters(7));
    let router = router(AppState::new(board.subscribe()));
    let api: Value = serde_json::from_str(OPENAPI).unwrap();
    let open = get(&router, "/v1/proposals").await.json();
    assert_eq!(
        (open["open"].as_u64(), open["proposals"].as_array().map(Vec::len)),
        (Some(6), Some(6))
    );
    for (path, schema) in [
        ("/v1/features?limit=1000&spark=true", "Features"),
        ("/v1/decisions", "Decisions"),
        ("/v1/actions", "Actions"),
        ("/v1/proposals", "Proposals"),
        ("/v1/status", "Status"),
        ("/v1/codes", "Codes"),
        ("/readyz", "Readiness"),
        ("/v1/features/nobody", "Error"),
    ] {
        let answer = get(&router, path).await.json();
        matches(&api, &api["components"]["schemas"][schema], &answer, schema);
    }
}

#[tokio::test]
async fn the_page_and_its_files_are_served_for_a_browser() {
    let router = router(AppState::new(board(&entities()).subscribe()));
    let page = get(&router, "/").await;
    assert_eq!(page.header(header::CONTENT_TYPE), "text/html; charset=utf-8");
    assert!(page.body.contains("width=device-width"), "readable on a phone");
    let policy = page.header(header::CONTENT_SECURITY_POLICY);
    assert!(policy.contains("default-src 'self'") && !policy.contains("unsafe"), "{policy}");
    assert_eq!(page.header(header::X_CONTENT_TYPE_OPTIONS), "nosniff");
    assert!(!page.body.contains("style=\"") && !page.body.contains("<script>"), "inline code");
    let mut files: Vec<String> = page
        .body
        .split(['"', '\''])
        .filter(|word| word.starts_with("/assets/"))
        .map(ToOwned::to_owned)
        .collect();
    assert!(files.len() >= 4, "{files:?}");
    let mut seen = 0;
    while let Some(path) = files.get(seen).cloned() {
        seen += 1;
        let file = get(&router, &path).await;
        assert_eq!(file.status, StatusCode::OK, "{path}");
        let css = path.ends_with(".css");
        let wanted = if css { "text/css; charset=utf-8" } else { "text/javascript; charset=utf-8" };
        assert_eq!(file.header(header::CONTENT_TYPE), wanted, "{path}");
        assert!(!file.body.contains("https://cdn"), "{path} needs the network");
        for import in file.body.split("from \"./").skip(1) {
            let path = format!("/assets/{}", import.split('"').next().unwrap());
            if !files.contains(&path) {
                files.push(path);
            }
        }
        let mut again = request(&path, None);
        let etag = file.headers[header::ETAG].clone();
        again.headers_mut().insert(header::IF_NONE_MATCH, etag);
        assert_eq!(reply(&router, again).await.status, StatusCode::NOT_MODIFIED);
    }
    assert!(files.contains(&"/assets/entities.js".to_owned()), "{files:?}");
    assert_eq!(get(&router, "/assets/../Cargo.toml").await.status, StatusCode::NOT_FOUND);
    assert_eq!(get(&router, "/assets/none.js").await.error_code(), "no_asset");
}

#[tokio::test]
async fn strangers_and_other_hosts_are_refused() {
    let board = board(&entities());
    let mut state = AppState::new(board.subscribe());
    state.hosts = Some(AppState::LOOPBACK.map(String::from).to_vec());
    state.tokens = tokens();
    let router = router(state);
    let mut rebound = request("/", None);
    rebound.headers_mut().insert(header::HOST, "evil.example:9464".parse().unwrap());
    assert_eq!(reply(&router, rebound).await.error_code(), "unknown_host");
    let mut six = request("/healthz", None);
    six.headers_mut().insert(header::HOST, "[::1]:9464".parse().unwrap());
    assert_eq!(reply(&router, six).await.status, StatusCode::OK);
    let none = get(&router, "/v1/features").await;
    assert_eq!(
        (none.status, none.header(header::WWW_AUTHENTICATE)),
        (StatusCode::UNAUTHORIZED, "Bearer")
    );
    let wrong = reply(&router, request("/v1/features", Some("guess"))).await;
    assert_eq!(wrong.error_code(), "no_token");
    let metrics = reply(&router, request("/metrics", Some(&token("acme")))).await;
    assert_eq!(metrics.error_code(), "operator_only");
    assert_eq!(get(&router, "/nowhere").await.error_code(), "no_route");
}

#[tokio::test]
async fn metrics_are_rendered_for_prometheus() {
    let mut state = AppState::new(board(&entities()).subscribe());
    assert_eq!(get(&router(state.clone()), "/metrics").await.error_code(), "no_metrics");
    state.metrics = Some(omnify_sinks::telemetry::install().unwrap());
    omnify_sinks::telemetry::events::DeadLettered { reason: "routes_test", count: 3 }.emit();
    let text = get(&router(state), "/metrics").await;
    assert!(text.header(header::CONTENT_TYPE).starts_with("text/plain; version=0.0.4"));
    assert!(text.body.contains("omnify_dead_letters_total{reason=\"routes_test\"} 3"));
}
