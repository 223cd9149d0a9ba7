//! A certificate of a test's own making.

use std::sync::Arc;

use tempfile::NamedTempFile;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

/// A self-signed certificate for `localhost` and `127.0.0.1`, and its key.
pub struct Identity {
    certificate: rcgen::Certificate,
    key: rcgen::KeyPair,
}

impl Identity {
    pub fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let names = ["localhost", "127.0.0.1"].map(str::to_owned);
        let certificate = rcgen::CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
        Self { certificate, key }
    }

    /// PEM; who trusts this file trusts the server.
    pub fn certificate_file(&self) -> NamedTempFile {
        file(&self.certificate.pem())
    }

    /// PEM.
    pub fn key_file(&self) -> NamedTempFile {
        file(&self.key.serialize_pem())
    }

    pub fn acceptor(&self) -> TlsAcceptor {
        let provider = Arc::new(tokio_rustls::rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![self.certificate.der().clone()],
                PrivateKeyDer::try_from(self.key.serialize_der()).unwrap(),
            )
            .unwrap();
        TlsAcceptor::from(Arc::new(config))
    }
}

/// Accepts TLS as `localhost`; trusted by whoever trusts the file, a PEM certificate.
pub fn acceptor() -> (TlsAcceptor, NamedTempFile) {
    let identity = Identity::new();
    (identity.acceptor(), identity.certificate_file())
}

fn file(text: &str) -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    file
}
