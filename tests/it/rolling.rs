//! Several daemons on one database, replaced one after the other while sellers go on.

use std::time::Duration;

use super::daemon::{Running, signing_key};
use super::support::receiver::Receiver;
use super::support::{TestDatabase, complete, eventually, issue, scratch};

const TASKS: usize = 300;

#[tokio::test]
async fn a_rolling_restart_loses_nothing_and_sends_nothing_twice() {
    let (database, receiver) = (TestDatabase::migrated().await, Receiver::start().await);
    let directory = scratch("taskbell-rolling-");
    let (key, ca) = (signing_key(directory.path()), receiver.ca_file.path().to_str().unwrap().to_owned());
    let environment = [
        ("TASKBELL_SIGNING__KEY_FILES", key.as_str()),
        ("TASKBELL_HTTP__CA_FILE", ca.as_str()),
        ("TASKBELL_GUARD__ALLOW_PRIVATE", "true"),
    ];
    let client = database.client().await;
    for n in 0..TASKS {
        issue(&client, &format!("task_{n}"), Some(&receiver.url("/ok"))).await;
    }
    let mut daemons =
        vec![Running::start(&database, &environment).await, Running::start(&database, &environment).await];
    let seller = tokio::spawn(async move {
        for n in 0..TASKS {
            complete(&client, &format!("task_{n}")).await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        client
    });
    let mut restarts = 0;
    while !seller.is_finished() || restarts < 4 {
        daemons.push(Running::start(&database, &environment).await);
        let old = daemons.remove(0);
        let (log, ended) = tokio::task::spawn_blocking(move || (old.log_later(), old.stop())).await.unwrap();
        assert!(ended.success(), "{ended}: {}", log.lock().unwrap());
        restarts += 1;
    }
    let client = seller.await.unwrap();
    eventually("everything is settled", async || {
        let left = client.query_one("SELECT count(*) FROM taskbell.outbox", &[]).await.unwrap();
        (left.get::<_, i64>(0) == 0).then_some(())
    })
    .await;
    // Every attempt was the first one of its webhook, and was accepted.
    let attempts = "SELECT count(*), count(DISTINCT task_id), max(attempt) FROM taskbell.attempt";
    let row = client.query_one(attempts, &[]).await.unwrap();
    let expected = i64::try_from(TASKS).unwrap();
    assert_eq!((row.get(0), row.get(1), row.get(2)), (expected, expected, 1));
    assert_eq!(receiver.posts().len(), TASKS);
    for daemon in daemons {
        assert!(daemon.stop().success());
    }
}
