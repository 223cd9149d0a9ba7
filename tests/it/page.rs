//! The page on the admin listener: who may look, and what a real browser makes of it.

use reqwest::header::{AUTHORIZATION, COOKIE, HOST, LOCATION, SET_COOKIE};
use reqwest::{Client, StatusCode, redirect};
use serde_json::Value;

use super::daemon::Running;
use super::support::browser::Browser;
use super::support::{TestDatabase, complete, eventually, issue};

const TOKEN: &str = "a token of the tests";

fn client() -> Client {
    Client::builder().no_proxy().redirect(redirect::Policy::none()).build().unwrap()
}

async fn with_page(database: &TestDatabase, more: &[(&str, &str)]) -> Running {
    Running::start(database, &[&[("TASKBELL_ADMIN__PAGE", "true")], more].concat()).await
}

/// The first view that a new viewer gets.
async fn first_view(daemon: &Running) -> Value {
    let mut events = client().get(format!("http://{}/events", daemon.admin)).send().await.unwrap();
    assert_eq!(events.headers()["content-type"], "text/event-stream");
    let mut text = String::new();
    while !text.contains("\n\n") {
        text.push_str(std::str::from_utf8(&events.chunk().await.unwrap().unwrap()).unwrap());
    }
    serde_json::from_str(text.trim().strip_prefix("data: ").unwrap()).unwrap()
}

/// One of everything: an open task, a lane, a dead letter, an attempt; with secrets beside them.
async fn furnish(client: &tokio_postgres::Client, hostile: &str) {
    issue(client, "t_open", Some("https://buyer.example/hook/9f8e7d6c5b4a39281706hush?secret=hush")).await;
    issue(client, "t_dead", Some("https://gone.example/hook/9f8e7d6c5b4a39281706hush?secret=hush")).await;
    issue(client, "t_due", Some("https://slow.example/hook?secret=hush")).await;
    issue(client, "t_hostile", None).await;
    let rename = "UPDATE decisioning_tasks SET task_id = $1, task_type = $1, account_id = $1 WHERE task_id = 't_hostile'";
    client.execute(rename, &[&hostile]).await.unwrap();
    for task in ["t_dead", "t_due"] {
        complete(client, task).await;
    }
    client
        .batch_execute(
            "UPDATE taskbell.outbox SET state = 'invalid', available_at = NULL, last_reason = 'gone', last_status = 410, attempt_count = 1
             WHERE task_id = 't_dead' AND lane IS NOT NULL;
             INSERT INTO taskbell.attempt (outbox_id, task_id, idempotency_key, attempt, started_at, duration_ms, status,
                                           reason, verdict)
             SELECT id, task_id, 'whk_' || idempotency_key, 1, now(), 41, 410, 'gone', 'dead_letter'
             FROM taskbell.outbox WHERE state = 'invalid';
             UPDATE taskbell.outbox SET available_at = now() + interval '1 hour', attempt_count = 1
             WHERE task_id = 't_due' AND lane IS NOT NULL;
             INSERT INTO taskbell.circuit (lane, account_id, failures, closed_until, last_reason)
             VALUES ('https://slow.example:443', 'acct', 5, now() + interval '3 minutes', 'timeout')",
        )
        .await
        .unwrap();
}

/// Cuts everybody off from the database, or lets them in again.
async fn shut(database: &TestDatabase, shut: bool) {
    let name = database.dsn.split("dbname=").nth(1).unwrap().split(' ').next().unwrap().trim_matches('\'');
    let elsewhere = TestDatabase::at(&database.dsn.replace(name, "postgres")).client().await;
    let allowed = !shut;
    elsewhere.batch_execute(&format!("ALTER DATABASE {name} ALLOW_CONNECTIONS {allowed}")).await.unwrap();
    if shut {
        let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1";
        elsewhere.query(cut, &[&name]).await.unwrap();
    }
}

#[tokio::test]
async fn without_being_asked_for_there_is_no_page() {
    let database = TestDatabase::migrated().await;
    let daemon = Running::start(&database, &[]).await;
    for path in ["/", "/page.js", "/events"] {
        assert_eq!(daemon.get(path).await.0, 404, "{path}");
    }
    assert!(daemon.stop().success());
}

#[tokio::test]
async fn on_loopback_it_answers_to_its_own_names_only_and_allows_nothing_else() {
    let database = TestDatabase::migrated().await;
    let daemon = with_page(&database, &[]).await;
    for path in ["/", "/page.css", "/page.js", "/events"] {
        let url = format!("http://{}{path}", daemon.admin);
        let rebound = client().get(&url).header(HOST, "evil.example:9464").send().await.unwrap();
        assert_eq!(rebound.status(), StatusCode::MISDIRECTED_REQUEST, "{path}");
        let ours = client().get(&url).header(HOST, "localhost:9464").send().await.unwrap();
        assert_eq!(ours.status(), 200, "{path}");
        let policy = ours.headers()["content-security-policy"].to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'; script-src 'self';"), "{policy}");
        assert!(!policy.contains("unsafe"), "{policy}");
    }
    assert_eq!(client().post(format!("http://{}/", daemon.admin)).send().await.unwrap().status(), 405);
    assert!(daemon.stop().success());
}

#[tokio::test]
async fn with_a_token_it_asks_once_and_leaves_a_cookie_that_is_not_the_token() {
    let database = TestDatabase::migrated().await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("token");
    std::fs::write(&file, format!("{TOKEN}\n")).unwrap();
    let daemon = with_page(&database, &[("TASKBELL_ADMIN__PAGE_TOKEN_FILE", file.to_str().unwrap())]).await;
    let url = |path: &str| format!("http://{}{path}", daemon.admin);
    let asked = client().get(url("/")).header(HOST, "ops.example").send().await.unwrap();
    assert_eq!(asked.status(), 401);
    assert!(asked.text().await.unwrap().contains("<form method=\"post\" action=\"/login\">"));
    assert_eq!(client().get(url("/events")).send().await.unwrap().status(), 401);

    let log_in = async |body: &str| client().post(url("/login")).body(body.to_owned()).send().await.unwrap();
    for wrong in ["token=a+token+of+the+test", "token=", "", "other=1"] {
        let refused = log_in(wrong).await;
        assert!(refused.status() == 403 && refused.headers().get(SET_COOKIE).is_none(), "{wrong}");
    }
    assert_eq!(log_in(&"x".repeat(5000)).await.status(), 413);
    let welcome = log_in("token=a+token+of+the+tests").await;
    assert_eq!((welcome.status().as_u16(), &welcome.headers()[LOCATION]), (303, &"/".parse().unwrap()));
    let cookie = welcome.headers()[SET_COOKIE].to_str().unwrap();
    assert!(cookie.contains("HttpOnly; SameSite=Strict") && !cookie.contains("tests"), "{cookie}");
    assert!(!cookie.contains("Secure"), "loopback has no TLS: {cookie}");
    let beyond = client().post(url("/login")).header(HOST, "ops.example").body("token=a+token+of+the+tests");
    let beyond = beyond.send().await.unwrap();
    assert!(beyond.headers()[SET_COOKIE].to_str().unwrap().ends_with("; Secure"), "{beyond:?}");
    let pair = cookie.split(';').next().unwrap();
    for (name, value) in [(COOKIE, pair), (AUTHORIZATION, &format!("Bearer {TOKEN}"))] {
        let page = client().get(url("/")).header(name, value).send().await.unwrap();
        assert!(page.status() == 200 && page.text().await.unwrap().contains("id=\"tasks\""), "{value}");
    }
    assert!(!daemon.log().contains(TOKEN));
    assert!(daemon.stop().success());
}

#[tokio::test]
async fn viewers_share_one_reader_which_ends_with_the_last_of_them() {
    let database = TestDatabase::migrated().await;
    let admin = database.client().await;
    let daemon = with_page(&database, &[]).await;
    let readers = async || {
        let sql = "SELECT count(*) FROM pg_stat_activity
                   WHERE datname = current_database() AND query LIKE '%taskbell.attempt ORDER BY recorded_at%'
                     AND pid <> pg_backend_pid()";
        admin.query_one(sql, &[]).await.unwrap().get::<_, i64>(0)
    };
    assert_eq!(readers().await, 0, "nobody looks");
    let url = format!("http://{}/events", daemon.admin);
    let mut viewers = Vec::new();
    for _ in 0..32 {
        let mut viewer = client().get(&url).send().await.unwrap();
        viewer.chunk().await.unwrap().unwrap();
        viewers.push(viewer);
    }
    assert_eq!(readers().await, 1);
    assert_eq!(client().get(&url).send().await.unwrap().status(), 503, "one too many");
    drop(viewers);
    eventually("the reader ends", async || (readers().await == 0).then_some(())).await;
    first_view(&daemon).await;
    // A stream that is open does not hold up a stop.
    let _open = client().get(&url).send().await.unwrap();
    assert!(daemon.stop().success());
}

#[tokio::test]
async fn what_it_shows_has_no_payload_no_query_and_no_token() {
    let database = TestDatabase::migrated().await;
    let client = database.client().await;
    furnish(&client, "t_other").await;
    client.batch_execute(include_str!("support/sdk_outbox.sql")).await.unwrap();
    let row = "INSERT INTO adcp_task_webhook_outbox (task_id, task_type, terminal_status, url, operation_id, state,
               idempotency_key, account_id, encrypted_body, envelope_nonce, retry_horizon_seconds, last_error)
               VALUES ('t_sdk', 'create_media_buy', 'completed', 'https://sdk.example/hook/9f8e7d6c5b4a39281706hush?secret=hush', 'op', 'invalid',
                       'whk_sdk_0123456789abcdef', 'acct', 'x', '123456789012', 86400, 'quarantined')";
    client.batch_execute(row).await.unwrap();
    let key = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(key.path(), [7; 32]).unwrap();
    let sealed = [
        ("TASKBELL_SOURCES__SEALED__TABLE", "adcp_task_webhook_outbox"),
        ("TASKBELL_SOURCES__SEALED__KEY_FILES", key.path().to_str().unwrap()),
    ];
    let daemon = with_page(&database, &sealed).await;
    let view = first_view(&daemon).await;
    assert!(view["database"].is_null(), "{view}");
    assert_eq!((&view["open"], &view["dead"], &view["closed"]), (&2.into(), &2.into(), &1.into()), "{view}");
    assert_eq!(view["tasks"][0]["task_id"], "t_open");
    assert_eq!(view["tasks"][0]["url"], "https://buyer.example/hook/[redacted]");
    let dead: Vec<&Value> =
        view["letters"].as_array().unwrap().iter().map(|letter| &letter["task_id"]).collect();
    assert_eq!(dead, ["t_sdk", "t_dead"], "the newest first, whosever it is");
    assert_eq!(view["letters"][0]["url"], "https://sdk.example/hook/[redacted]");
    assert_eq!(view["letters"][1]["because"], "The receiver answered 410: the endpoint is gone for good.");
    assert_eq!((&view["lanes"][0]["circuit"], &view["lanes"][0]["owed"]), (&"closed".into(), &1.into()));
    assert_eq!(view["attempts"][0]["url"], "https://gone.example/hook/[redacted]");
    for secret in ["hush", "1.50", "op_t_open"] {
        assert!(!view.to_string().contains(secret), "{secret}: {view}");
    }
    assert!(daemon.stop().success());
}

#[tokio::test]
async fn a_browser_shows_it_live_and_takes_nothing_hostile_for_markup() {
    let Some(mut browser) = Browser::start().await else { return };
    let database = TestDatabase::migrated().await;
    let client = database.client().await;
    let hostile = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">";
    furnish(&client, hostile).await;
    let daemon = with_page(&database, &[("TASKBELL_ADMIN__PAGE_TOKEN", TOKEN)]).await;
    browser.open(&format!("http://{}/", daemon.admin)).await;
    browser.until("document.querySelector('#token')?.matches(':focus')").await;
    browser.value(&format!("document.querySelector('#token').value = '{TOKEN}'")).await;
    browser.value("document.querySelector('button').click()").await;
    browser.until("document.querySelector('#state')?.textContent === 'Live'").await;
    browser.until("document.querySelector('#n-open').textContent === '2'").await;
    let cell = "[...document.querySelectorAll('#tasks td.id')].map((td) => td.textContent)";
    let shown = browser.value(cell).await;
    assert_eq!(shown, serde_json::json!(["t_open", hostile]), "as text");
    assert_eq!(browser.value("document.title").await, "Taskbell");
    assert_eq!(browser.value("document.querySelectorAll('main script, main img').length").await, 0);
    assert_eq!(browser.value("document.cookie").await, "", "no script reads the cookie");

    for width in [360, 390, 720, 1024, 1280] {
        browser.picture(width, 844, width < 700).await;
        let wide = browser.value("document.documentElement.scrollWidth").await;
        assert_eq!(wide, width, "nothing is wider than the screen");
    }
    complete(&client, "t_open").await;
    browser.until("document.querySelector('#n-open').textContent === '1'").await;
    browser.until("[...document.querySelectorAll('#lanes td')].some((td) => td.textContent.includes('buyer.example'))").await;
    client.execute("DELETE FROM decisioning_tasks WHERE task_id = $1", &[&hostile]).await.unwrap();
    browser.until("!document.querySelector('#tasks .empty').hidden && document.querySelector('#tasks table').hidden").await;

    // On a phone, where the heads are out of sight, every cell says what it is.
    browser.picture(390, 844, true).await;
    let labels = "getComputedStyle(document.querySelector('#letters td'), '::before').content";
    assert_eq!(browser.value(labels).await, "\"Since\"");

    shut(&database, true).await;
    browser.until("document.querySelector('#state').textContent === 'Database down'").await;
    let trouble = browser.value("document.querySelector('#trouble').textContent").await;
    assert!(trouble.as_str().unwrap().contains("What you see is from"), "{trouble}");
    assert_eq!(browser.value("document.querySelectorAll('#letters tbody tr').length").await, 1, "kept");
    shut(&database, false).await;
    browser.until("document.querySelector('#trouble').hidden").await;
    assert!(daemon.stop().success());
    browser.until("document.querySelector('#state').textContent === 'Daemon out of reach'").await;
}

/// Takes the picture of docs/, and those that a person should look at after a change:
/// `just pictures DIRECTORY`.
#[tokio::test]
#[ignore = "for people"]
async fn pictures() {
    let directory = std::path::PathBuf::from(std::env::var("PAGE_PICTURES").unwrap());
    let save = |name: &str, picture| std::fs::write(directory.join(format!("{name}.png")), picture).unwrap();
    let mut browser = Browser::start().await.expect("a browser");
    let database = TestDatabase::migrated().await;
    let daemon = with_page(&database, &[]).await;
    browser.open(&format!("http://{}/", daemon.admin)).await;
    browser.until("document.querySelector('#state').textContent === 'Live'").await;
    save("empty", browser.picture(1280, 800, false).await);
    let client = database.client().await;
    client.batch_execute(include_str!("support/page_sample.sql")).await.unwrap();
    browser.until("document.querySelectorAll('#attempts tbody tr').length > 4").await;
    save("page", browser.picture(1120, 760, false).await);
    for (name, width, height) in [("desktop", 1280, 1500), ("phone", 390, 3000), ("tablet", 820, 1200)] {
        save(&format!("{name}-light"), browser.picture(width, height, false).await);
        save(&format!("{name}-dark"), browser.picture(width, height, true).await);
    }
    shut(&database, true).await;
    browser.until("document.querySelector('#state').textContent === 'Database down'").await;
    save("down", browser.picture(1280, 800, false).await);
    drop(daemon);
    let daemon = with_page(&TestDatabase::migrated().await, &[("TASKBELL_ADMIN__PAGE_TOKEN", TOKEN)]).await;
    browser.open(&format!("http://{}/", daemon.admin)).await;
    browser.until("document.querySelector('#token')").await;
    save("login", browser.picture(1280, 800, false).await);
    assert!(daemon.stop().success());
}
