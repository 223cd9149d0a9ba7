//! A page for people: open tasks, attempts, lanes and dead letters, live and read-only.
//!
//! One document with its style and its script, all compiled in; nothing is loaded from
//! elsewhere, and the policy that goes with it allows nothing else. What it shows comes as
//! server-sent events from the [`Board`] and is put in as text. No payloads, no secrets, URLs
//! without query and tokens. Who may look is the [`Gate`]'s to say.

mod gate;
mod board;

use std::convert::Infallible;
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::StatusCode;
use axum::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures_util::stream::{self, StreamExt};
use tokio_util::sync::CancellationToken;

pub use board::{Board, Health};
pub use gate::Gate;

/// The page of one admin listener.
pub struct Page {
    /// Who may look.
    pub gate: Gate,
    /// What there is to see.
    pub board: Arc<Board>,
    /// Ends the streams of those who look.
    pub stop: CancellationToken,
}

/// The page's routes.
pub fn routes(page: Page) -> Router {
    let page = Arc::new(page);
    Router::new()
        .route("/", get(document))
        .route("/page.css", get(|| async { text("text/css", CSS) }))
        .route("/page.js", get(|| async { text("text/javascript", JS) }))
        .route("/events", get(events))
        .route("/login", post(login))
        .layer(DefaultBodyLimit::max(MAX_FORM_BYTES))
        .layer(from_fn_with_state(page.clone(), gatekeeper))
        .with_state(page)
}

/// Turns away names that are not ours, and sends with every answer what a browser may do with it.
async fn gatekeeper(State(page): State<Arc<Page>>, request: Request, next: Next) -> Response {
    let mut response = if page.gate.knows_host(request.headers()) {
        next.run(request).await
    } else {
        (StatusCode::MISDIRECTED_REQUEST, "ask for this page as localhost or by a loopback address\n")
            .into_response()
    };
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

async fn document(State(page): State<Arc<Page>>, headers: HeaderMap) -> Response {
    if page.gate.admits(&headers) {
        text("text/html", HTML)
    } else {
        ask_for_token(StatusCode::UNAUTHORIZED, "")
    }
}

/// Takes the token once and leaves a cookie for it.
async fn login(State(page): State<Arc<Page>>, headers: HeaderMap, form: Bytes) -> Response {
    let token = url::form_urlencoded::parse(&form).find(|(name, _)| name == "token");
    match token.and_then(|(_, token)| page.gate.cookie_for(token.trim(), &headers)) {
        Some(cookie) => {
            let home = [(header::LOCATION, "/".to_owned()), (header::SET_COOKIE, cookie)];
            (StatusCode::SEE_OTHER, home).into_response()
        }
        None => ask_for_token(StatusCode::FORBIDDEN, "That is not the token."),
    }
}

fn ask_for_token(status: StatusCode, problem: &'static str) -> Response {
    let form = LOGIN.replace("<!-- problem -->", problem);
    (status, [(header::CONTENT_TYPE, "text/html; charset=utf-8")], form).into_response()
}

/// What is on the board, now and whenever it changes.
async fn events(State(page): State<Arc<Page>>, headers: HeaderMap) -> Response {
    if !page.gate.admits(&headers) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let Some(seat) = page.board.watch() else {
        return (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "10")]).into_response();
    };
    let views = stream::unfold(seat, |mut seat| async move {
        let view = seat.next().await?;
        Some((Ok::<_, Infallible>(Event::default().data(view)), seat))
    });
    let views = views.take_until(page.stop.clone().cancelled_owned());
    Sse::new(views).keep_alive(KeepAlive::default()).into_response()
}

fn text(kind: &'static str, body: &'static str) -> Response {
    ([(header::CONTENT_TYPE, format!("{kind}; charset=utf-8"))], body).into_response()
}

/// Only what we serve ourselves, no inline script or style, in nobody's frame, kept nowhere.
const HEADERS: [(HeaderName, &str); 6] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
         form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CACHE_CONTROL, "no-store"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];
/// A form with one token.
const MAX_FORM_BYTES: usize = 4096;
const HTML: &str = include_str!("page.html");
const LOGIN: &str = include_str!("login.html");
const CSS: &str = include_str!("page.css");
const JS: &str = include_str!("page.js");
