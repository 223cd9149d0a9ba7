//! One suite for both registries.

use std::collections::HashSet;
use std::sync::Arc;

use futures_util::future::join_all;
use serde_json::json;
use taskbell::registry::{
    Cursor, Direction, InMemoryTaskRegistry, ListQuery, NewTask, PostgresTaskRegistry, RegistryError, Scope,
    Settled, SortBy, TableName, TaskRegistry,
};
use taskbell::task::{AccountId, Registration, TaskId, TaskState, TaskType, UrlSchemes};

use super::support::TestDatabase;

fn account(name: &str) -> AccountId {
    AccountId::parse(name).unwrap()
}

fn new_task(owner: &str, kind: &str) -> NewTask {
    NewTask {
        account: account(owner),
        task_type: TaskType::parse(kind).unwrap(),
        request_context: Some(json!({ "trace": "é" })),
        registration: None,
    }
}

fn registration() -> Registration {
    let config = json!({ "url": "https://buyer.example/hook?a=1", "operation_id": "op_1" });
    Registration::parse(&config, UrlSchemes::HttpsOnly).unwrap()
}

async fn whole_lifecycle<R: TaskRegistry>(registry: &R) {
    let (mine, scope) = (account("acct_a"), account("acct_a"));
    let scope = Scope::Account(&scope);
    let id = registry
        .issue(NewTask { registration: Some(registration()), ..new_task("acct_a", "create_media_buy") })
        .await
        .unwrap();
    let task = registry.get(&id, scope).await.unwrap().unwrap();
    assert_eq!(
        (task.state, task.progress, task.result, task.error),
        (TaskState::SUBMITTED, None, None, None)
    );
    assert_eq!(task.account, mine);
    assert_eq!(task.request_context, Some(json!({ "trace": "é" })));
    registry.update_progress(&id, scope, json!({ "percentage": 10 })).await.unwrap();
    registry.update_progress(&id, scope, json!({ "percentage": 60 })).await.unwrap();
    let task = registry.get(&id, scope).await.unwrap().unwrap();
    assert_eq!((task.state, task.progress), (TaskState::WORKING, Some(json!({ "percentage": 60 }))));
    let result =
        json!({ "media_buy_id": "mb_1", "billing_entity": { "legal_name": "L", "bank": { "iban": "X" } } });
    assert_eq!(registry.complete(&id, scope, result.clone()).await.unwrap(), Settled::Now);
    let task = registry.get(&id, scope).await.unwrap().unwrap();
    assert_eq!(task.state, TaskState::COMPLETED);
    assert_eq!(task.result, Some(json!({ "media_buy_id": "mb_1", "billing_entity": { "legal_name": "L" } })));
    // A straggler, a repetition, and three conflicts.
    registry.update_progress(&id, scope, json!({ "percentage": 99 })).await.unwrap();
    assert_eq!(registry.get(&id, scope).await.unwrap().unwrap().progress, Some(json!({ "percentage": 60 })));
    assert_eq!(registry.complete(&id, scope, result).await.unwrap(), Settled::Already);
    let conflict = |error| matches!(error, Err(RegistryError::Conflict { state: TaskState::COMPLETED }));
    assert!(conflict(registry.complete(&id, scope, json!({})).await));
    assert!(conflict(registry.fail(&id, scope, json!({ "code": "X" })).await));
    let failed = registry.issue(new_task("acct_a", "create_media_buy")).await.unwrap();
    assert_eq!(registry.fail(&failed, scope, json!({ "code": "X", "n": 1 })).await.unwrap(), Settled::Now);
    assert_eq!(
        registry.fail(&failed, scope, json!({ "n": 1.0, "code": "X" })).await.unwrap(),
        Settled::Already
    );
    let after = registry.complete(&failed, scope, json!({})).await;
    assert!(matches!(after, Err(RegistryError::Conflict { state: TaskState::FAILED })));
    registry.discard(&id, scope).await.unwrap();
    registry.discard(&id, scope).await.unwrap();
    assert_eq!(registry.get(&id, scope).await.unwrap(), None);
}

async fn refusals<R: TaskRegistry>(registry: &R) {
    let odd = NewTask { registration: Some(registration()), ..new_task("acct_r", "walk_the_dog") };
    let refused = registry.issue(odd).await;
    assert!(matches!(refused, Err(RegistryError::Refused { field: "task_type", .. })), "{refused:?}");
    registry.issue(new_task("acct_r", "walk_the_dog")).await.unwrap();
    let no_object = NewTask { request_context: Some(json!("text")), ..new_task("acct_r", "get_products") };
    assert!(matches!(
        registry.issue(no_object).await,
        Err(RegistryError::Refused { field: "request_context", .. })
    ));
    let owner = account("acct_r");
    assert_eq!(registry.list(&owner, &ListQuery::default()).await.unwrap().tasks.len(), 1);
    let id = registry.issue(new_task("acct_r", "get_products")).await.unwrap();
    let nul = json!({ "deep": ["a\0b"] });
    for (field, refused) in [
        ("progress", registry.update_progress(&id, Scope::Operator, nul.clone()).await.err()),
        ("result", registry.complete(&id, Scope::Operator, nul.clone()).await.err()),
        ("error", registry.fail(&id, Scope::Operator, nul.clone()).await.err()),
        ("result", registry.complete(&id, Scope::Operator, json!("x".repeat(10_000_001))).await.err()),
    ] {
        assert!(matches!(refused, Some(RegistryError::Refused { field: named, .. }) if named == field));
    }
    for limit in [0, 101] {
        let query = ListQuery { limit, ..ListQuery::default() };
        assert!(matches!(
            registry.list(&owner, &query).await,
            Err(RegistryError::Refused { field: "limit", .. })
        ));
    }
    assert_eq!(registry.get(&id, Scope::Operator).await.unwrap().unwrap().state, TaskState::SUBMITTED);
}

async fn other_accounts_learn_nothing<R: TaskRegistry>(registry: &R) {
    let id = registry.issue(new_task("acct_owner", "get_products")).await.unwrap();
    let (probe, nobody) = (account("acct_probe"), TaskId::random());
    let probe = Scope::Account(&probe);
    for id in [&id, &nobody] {
        assert_eq!(registry.get(id, probe).await.unwrap(), None);
        registry.update_progress(id, probe, json!({})).await.unwrap();
        assert!(matches!(registry.complete(id, probe, json!({})).await, Err(RegistryError::Unknown)));
        assert!(matches!(registry.fail(id, probe, json!({})).await, Err(RegistryError::Unknown)));
        registry.discard(id, probe).await.unwrap();
    }
    assert!(registry.list(&account("acct_probe"), &ListQuery::default()).await.unwrap().tasks.is_empty());
    let untouched = registry.get(&id, Scope::Operator).await.unwrap().unwrap();
    assert_eq!((untouched.state, untouched.progress), (TaskState::SUBMITTED, None));
    registry.complete(&id, Scope::Operator, json!({ "a": 1 })).await.unwrap();
    // Not even that it has ended, or how.
    assert!(matches!(registry.complete(&id, probe, json!({ "a": 1 })).await, Err(RegistryError::Unknown)));
    assert!(matches!(registry.fail(&id, probe, json!({})).await, Err(RegistryError::Unknown)));
}

async fn many_at_once<R: TaskRegistry + 'static>(registry: Arc<R>) {
    let issued = join_all((0..200).map(|_| registry.issue(new_task("acct_many", "get_products")))).await;
    let ids: HashSet<TaskId> = issued.into_iter().map(Result::unwrap).collect();
    assert_eq!(ids.len(), 200);
    let mut ids = ids.into_iter();
    let equal = ids.next().unwrap();
    let told = join_all((0..50).map(|_| registry.complete(&equal, Scope::Operator, json!({ "a": 1 })))).await;
    assert_eq!(told.iter().filter(|told| matches!(told, Ok(Settled::Now))).count(), 1);
    assert_eq!(told.iter().filter(|told| matches!(told, Ok(Settled::Already))).count(), 49);
    let different = ids.next().unwrap();
    let told =
        join_all((0..50).map(|n| registry.complete(&different, Scope::Operator, json!({ "n": n })))).await;
    let winners: Vec<usize> = (0..50).filter(|n| matches!(told[*n], Ok(Settled::Now))).collect();
    assert_eq!(winners.len(), 1);
    assert_eq!(told.iter().filter(|told| matches!(told, Err(RegistryError::Conflict { .. }))).count(), 49);
    let kept = registry.get(&different, Scope::Operator).await.unwrap().unwrap();
    assert_eq!(kept.result, Some(json!({ "n": winners[0] })));
    for id in ids.take(20) {
        let (progress, end) = tokio::join!(
            registry.update_progress(&id, Scope::Operator, json!({ "percentage": 1 })),
            registry.fail(&id, Scope::Operator, json!({ "code": "X" })),
        );
        progress.unwrap();
        assert_eq!(end.unwrap(), Settled::Now);
        assert_eq!(registry.get(&id, Scope::Operator).await.unwrap().unwrap().state, TaskState::FAILED);
    }
}

async fn pages<R: TaskRegistry>(registry: &R) {
    let owner = account("acct_pages");
    let mut issued = Vec::new();
    for n in 0..25 {
        let kind = if n % 5 == 0 { "sync_creatives" } else { "get_products" };
        issued.push(registry.issue(new_task("acct_pages", kind)).await.unwrap());
    }
    for id in &issued[..3] {
        registry.complete(id, Scope::Operator, json!({})).await.unwrap();
    }
    for (sort, direction) in [
        (SortBy::CreatedAt, Direction::Ascending),
        (SortBy::CreatedAt, Direction::Descending),
        (SortBy::UpdatedAt, Direction::Ascending),
        (SortBy::UpdatedAt, Direction::Descending),
    ] {
        let mut query = ListQuery { sort, direction, limit: 7, ..ListQuery::default() };
        let (mut seen, mut sizes) = (Vec::new(), Vec::new());
        loop {
            let page = registry.list(&owner, &query).await.unwrap();
            sizes.push(page.tasks.len());
            seen.extend(page.tasks);
            match page.next {
                Some(next) => query.after = Some(Cursor::decode(&next.encode()).unwrap()),
                None => break,
            }
        }
        assert_eq!(sizes, [7, 7, 7, 4]);
        let key = |task: &taskbell::registry::Task| match sort {
            SortBy::CreatedAt => (task.created_at, task.id.clone()),
            SortBy::UpdatedAt => (task.updated_at, task.id.clone()),
        };
        let mut keys: Vec<_> = seen.iter().map(key).collect();
        if direction == Direction::Descending {
            keys.reverse();
        }
        assert!(keys.windows(2).all(|pair| pair[0] < pair[1]), "{sort:?} {direction:?}");
        assert_eq!(seen.len(), 25);
    }
    let count = async |query: ListQuery| registry.list(&owner, &query).await.unwrap().tasks.len();
    assert_eq!(count(ListQuery { states: vec![TaskState::COMPLETED], ..ListQuery::default() }).await, 3);
    let creatives = vec![TaskType::parse("sync_creatives").unwrap()];
    assert_eq!(count(ListQuery { task_types: creatives, ..ListQuery::default() }).await, 5);
    let tenth = registry.get(&issued[10], Scope::Operator).await.unwrap().unwrap().created_at;
    let from = count(ListQuery { created_from: Some(tenth), ..ListQuery::default() }).await;
    let before = count(ListQuery { created_before: Some(tenth), ..ListQuery::default() }).await;
    assert_eq!(from + before, 25);
    assert!(from >= 15 && before <= 10, "{from} {before}");
}

macro_rules! conformance {
    ($name:ident, $registry:expr) => {
        mod $name {
            use super::*;

            #[tokio::test]
            async fn a_task_lives_and_ends_once() {
                whole_lifecycle(&$registry).await;
            }
            #[tokio::test]
            async fn what_cannot_be_kept_is_refused_by_name() {
                refusals(&$registry).await;
            }
            #[tokio::test]
            async fn another_accounts_probe_is_an_unknown_task() {
                other_accounts_learn_nothing(&$registry).await;
            }
            #[tokio::test]
            async fn of_many_at_once_one_wins_and_all_are_told_the_truth() {
                many_at_once(Arc::new($registry)).await;
            }
            #[tokio::test]
            async fn pages_are_filtered_sorted_and_complete() {
                pages(&$registry).await;
            }
        }
    };
}

conformance!(in_memory, InMemoryTaskRegistry::new());
conformance!(postgres, PostgresTaskRegistry::new(TestDatabase::migrated().await.pool()));

#[tokio::test]
async fn another_table_name_serves_as_well_and_rings() {
    let database = TestDatabase::empty().await;
    let registry = PostgresTaskRegistry::with_table(database.pool(), TableName::parse("my_tasks").unwrap());
    // From many processes at once, on every boot.
    for result in join_all((0..8).map(|_| registry.create_schema())).await {
        result.unwrap();
    }
    registry.create_schema().await.unwrap();
    whole_lifecycle(&registry).await;
    let client = database.client().await;
    let owed: i64 = client
        .query_one("SELECT count(*) FROM taskbell.outbox WHERE lane = 'https://buyer.example:443'", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(owed, 1);
}

#[tokio::test]
async fn a_registration_that_only_the_sdk_can_open_is_left_to_the_sdk() {
    let database = TestDatabase::migrated().await;
    let registry = PostgresTaskRegistry::new(database.pool());
    let id = registry.issue(new_task("acct", "create_media_buy")).await.unwrap();
    let client = database.client().await;
    client
        .execute("UPDATE decisioning_tasks SET webhook_registration = '\\x00', webhook_registration_nonce = '\\x00'", &[])
        .await
        .unwrap();
    let refused = registry.complete(&id, Scope::Operator, json!({})).await;
    assert!(matches!(refused, Err(RegistryError::SealedRegistration)), "{refused:?}");
    assert_eq!(registry.get(&id, Scope::Operator).await.unwrap().unwrap().state, TaskState::SUBMITTED);
}
