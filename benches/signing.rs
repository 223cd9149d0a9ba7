//! What one attempt costs before and after the network, on one core: signing, verifying, and
//! reading and checking the URL.

#![allow(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

use std::hint::black_box;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use secrecy::SecretString;
use taskbell::task::{Authentication, CallbackUrl, Target, UrlSchemes};
use taskbell::webhook::verify::{Arrived, ReplayWindow, Revocation, Verifier, VerifyingKeys};
use taskbell::webhook::{
    GuardPolicy, IdempotencyKey, KeyRing, LegacyModes, Prepared, Signer, SigningAlgorithm, SigningKey,
};

const URL: &str = "https://hooks.buyer.example/adcp/v3/webhooks?account=acct_1&token=0123456789abcdef";
const BODY_BYTES: [usize; 2] = [1_000, 100_000];
const ALGORITHMS: [(&str, SigningAlgorithm); 2] =
    [("ed25519", SigningAlgorithm::Ed25519), ("p256", SigningAlgorithm::EcdsaP256)];

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_776_520_800)
}

fn prepared(body_bytes: usize, authentication: Option<Authentication>) -> Prepared {
    Prepared {
        url: CallbackUrl::parse(URL, UrlSchemes::HttpsOnly).unwrap(),
        key: IdempotencyKey::parse("whk_00000000-0000-4000-8000-000000000001").unwrap(),
        body: Bytes::from(vec![b'x'; body_bytes]),
        authentication,
        signing_scope: None,
    }
}

fn signer(algorithm: SigningAlgorithm) -> Signer {
    let key = SigningKey::generate(algorithm, Some("k1")).unwrap();
    Signer::new(KeyRing::new(vec![key]).unwrap(), LegacyModes::default())
}

fn sign(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("sign");
    group.throughput(Throughput::Elements(1));
    for bytes in BODY_BYTES {
        for (name, algorithm) in ALGORITHMS {
            let (signer, prepared) = (signer(algorithm), prepared(bytes, None));
            group.bench_function(BenchmarkId::new(name, bytes), |bencher| {
                bencher.iter(|| signer.headers(black_box(&prepared), now()).unwrap());
            });
        }
        let signer = Signer::new(KeyRing::default(), LegacyModes::default());
        let secret = SecretString::from("0123456789abcdef".repeat(2));
        let prepared = prepared(bytes, Some(Authentication::HmacSha256(secret)));
        group.bench_function(BenchmarkId::new("hmac", bytes), |bencher| {
            bencher.iter(|| signer.headers(black_box(&prepared), now()).unwrap());
        });
    }
    group.finish();
}

fn verify(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("verify");
    group.throughput(Throughput::Elements(1));
    for bytes in BODY_BYTES {
        for (name, algorithm) in ALGORITHMS {
            let (signer, prepared) = (signer(algorithm), prepared(bytes, None));
            let keys =
                VerifyingKeys::parse(&signer.keys().ring(None).unwrap().jwks(now()).to_string()).unwrap();
            let headers = signer.headers(&prepared, now()).unwrap();
            let arrived = Arrived { method: "POST", url: URL, headers: &headers, body: &prepared.body };
            // A verifier each time, because a second look at the same request is a replay.
            let fresh = || Verifier::new(keys.clone(), Revocation::default(), ReplayWindow::new(1_000));
            group.bench_function(BenchmarkId::new(name, bytes), |bencher| {
                bencher.iter_batched(
                    fresh,
                    |verifier| verifier.verify(black_box(arrived), now()).unwrap(),
                    BatchSize::SmallInput,
                );
            });
        }
    }
    group.finish();
}

fn url(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("url");
    group.throughput(Throughput::Elements(1));
    let international = "https://b\u{fc}cher.example/\u{fc}/../%7e?x";
    for (name, url) in
        [("name", URL), ("address", "https://[2606:4700::1111]:8443/h"), ("idn", international)]
    {
        let policy = GuardPolicy::default();
        group.bench_function(BenchmarkId::new("parse", name), |bencher| {
            bencher.iter(|| Target::parse(black_box(url)).unwrap());
        });
        let target = Target::parse(url).unwrap();
        group.bench_function(BenchmarkId::new("check", name), |bencher| {
            bencher.iter(|| policy.check_url(black_box(target.url())).unwrap());
        });
    }
    group.finish();
}

criterion_group!(benches, sign, verify, url);
criterion_main!(benches);
