//! From `s3://bucket/prefix` or `file://folder` to a [`Remote`].
//!
//! Credentials come from the environment alone (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
//! AWS_SESSION_TOKEN, a web identity or container role), never from the configuration.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::local::LocalFileSystem;
use object_store::{BackoffConfig, ClientOptions, RetryConfig};

use super::crypto::OpenSsl;
use super::{ObjectsError, Remote};

/// Tries of one request; the mirror goes on after that by itself, so that it can say what is wrong.
const RETRIES: usize = 4;

/// How the store is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// Base URL of a store other than AWS; "" is AWS.
    pub endpoint: String,
    /// Region that requests are signed for; "" is that of the environment.
    pub region: String,
    /// The bucket is part of the path, not of the host name.
    pub path_style: bool,
    /// Without TLS.
    pub allow_http: bool,
    /// Longest wait for one request.
    pub timeout: Duration,
}

/// Where a copy is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A prefix of a bucket.
    S3 {
        /// The bucket.
        bucket: String,
        /// The prefix.
        prefix: String,
    },
    /// A folder.
    File(PathBuf),
}

impl Address {
    /// Whether `text` is meant as an address rather than as a path.
    pub fn is_one(text: &str) -> bool {
        text.contains("://")
    }

    /// Reads an address.
    pub fn parse(text: &str) -> Result<Address, ObjectsError> {
        let bad = |what: &str| ObjectsError::Address {
            address: text.to_owned(),
            what: format!("{what}; write s3://bucket/prefix or file:///folder"),
        };
        match text.split_once("://") {
            Some(("s3", rest)) => {
                let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
                let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
                if bucket.is_empty() || !bucket.chars().all(plain) {
                    return Err(bad("names no bucket"));
                }
                let prefix = prefix.trim_matches('/').to_owned();
                Ok(Address::S3 { bucket: bucket.to_owned(), prefix })
            }
            Some(("file", "")) => Err(bad("names no folder")),
            Some(("file", folder)) => Ok(Address::File(folder.into())),
            _ => Err(bad("is no address of an object store")),
        }
    }

    /// Reads an address that may name a history below a copy (`…/history/RUN`); returns both.
    pub fn parse_run(text: &str) -> Result<(Address, Option<String>), ObjectsError> {
        let trimmed = text.trim_end_matches('/');
        match trimmed.rsplit_once("/history/") {
            Some((before, run)) if !run.is_empty() && !run.contains('/') => {
                Ok((Address::parse(before)?, Some(run.to_owned())))
            }
            _ => Ok((Address::parse(text)?, None)),
        }
    }

    /// Makes a client; nothing is asked of the store yet.
    pub fn open(&self, access: &Access) -> Result<Remote, ObjectsError> {
        match self {
            Address::S3 { bucket, prefix } => {
                let name = format!("s3://{bucket}/{prefix}");
                let name = name.trim_end_matches('/');
                let bad = |error: object_store::Error| ObjectsError::Address {
                    address: name.to_owned(),
                    what: format!("cannot be reached with this configuration: {error}"),
                };
                let client = ClientOptions::new()
                    .with_allow_http(access.allow_http)
                    .with_timeout(access.timeout)
                    .with_connect_timeout(access.timeout.min(Duration::from_secs(5)));
                let mut builder = AmazonS3Builder::from_env()
                    .with_client_options(client)
                    .with_allow_http(access.allow_http)
                    .with_crypto_provider(Arc::new(OpenSsl))
                    .with_retry(RetryConfig {
                        backoff: BackoffConfig::default(),
                        max_retries: RETRIES,
                        retry_timeout: access.timeout,
                    })
                    .with_virtual_hosted_style_request(!access.path_style)
                    .with_bucket_name(bucket);
                if !access.region.is_empty() {
                    builder = builder.with_region(&access.region);
                }
                if !access.endpoint.is_empty() {
                    builder = builder.with_endpoint(&access.endpoint);
                }
                Ok(Remote::new(Arc::new(builder.build().map_err(bad)?), prefix, name))
            }
            Address::File(folder) => {
                std::fs::create_dir_all(folder).map_err(ObjectsError::io("create", folder))?;
                let name = format!("file://{}", folder.display());
                let store = LocalFileSystem::new_with_prefix(folder);
                let store = store.map_err(|error| ObjectsError::Address {
                    address: name.clone(),
                    what: format!("cannot be used: {error}"),
                })?;
                Ok(Remote::on_folder(Arc::new(store.with_fsync(true)), folder, &name))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_or_refused_with_the_form_to_write() {
        let s3 = |bucket: &str, prefix: &str| Address::S3 {
            bucket: bucket.to_owned(),
            prefix: prefix.to_owned(),
        };
        assert_eq!(Address::parse("s3://b/p/q/").unwrap(), s3("b", "p/q"));
        assert_eq!(Address::parse("s3://b").unwrap(), s3("b", ""));
        assert_eq!(Address::parse("file:///a/b").unwrap(), Address::File("/a/b".into()));
        for bad in ["s3://", "s3:///p", "file://", "gs://b/p", "b/p", "s3://a b/p"] {
            let error = Address::parse(bad).unwrap_err().to_string();
            assert!(error.contains("write s3://bucket/prefix"), "{error}");
        }
        let (address, run) = Address::parse_run("s3://b/p/history/run-1/").unwrap();
        assert_eq!((address, run.as_deref()), (s3("b", "p"), Some("run-1")));
        assert_eq!(Address::parse_run("s3://b/p").unwrap(), (s3("b", "p"), None));
        assert!(Address::is_one("s3://b") && !Address::is_one("omnify-data/history"));
    }
}
