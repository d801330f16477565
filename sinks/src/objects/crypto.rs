//! SHA-256 for signing requests, by the OpenSSL that is linked for TLS and brokers anyway.

use object_store::client::{
    CryptoProvider, DigestAlgorithm, DigestContext, HmacContext, Signer, SigningAlgorithm,
};
use object_store::{Error, Result};
use openssl::error::ErrorStack;
use openssl::hash::{Hasher, MessageDigest};
use openssl::pkey::PKey;
use openssl::sha::sha256;

/// See the module.
#[derive(Debug)]
pub(super) struct OpenSsl;

/// Bytes of a block of SHA-256, which HMAC pads its key to.
const BLOCK: usize = 64;

impl CryptoProvider for OpenSsl {
    fn digest(&self, _: DigestAlgorithm) -> Result<Box<dyn DigestContext>> {
        Ok(Box::new(Context::new(None, &[])?))
    }

    fn hmac(&self, _: DigestAlgorithm, secret: &[u8]) -> Result<Box<dyn HmacContext>> {
        let mut key = [0; BLOCK];
        match secret.len() <= BLOCK {
            true => key[..secret.len()].copy_from_slice(secret),
            false => key[..32].copy_from_slice(&sha256(secret)),
        }
        Ok(Box::new(Context::new(Some(key.map(|byte| byte ^ 0x5c)), &key.map(|byte| byte ^ 0x36))?))
    }

    fn sign(&self, _: SigningAlgorithm, pem: &[u8]) -> Result<Box<dyn Signer>> {
        Ok(Box::new(Key(PKey::private_key_from_pem(pem).map_err(failed)?)))
    }
}

fn failed(error: ErrorStack) -> Error {
    Error::Generic { store: "OpenSSL", source: Box::new(error) }
}

/// A digest, or (with an outer pad) a keyed one: RFC 2104.
struct Context {
    hasher: Hasher,
    outer: Option<[u8; BLOCK]>,
    result: Vec<u8>,
    /// The first failure, told at the end.
    failure: Option<ErrorStack>,
}

impl Context {
    fn new(outer: Option<[u8; BLOCK]>, inner: &[u8]) -> Result<Context> {
        let mut hasher = Hasher::new(MessageDigest::sha256()).map_err(failed)?;
        hasher.update(inner).map_err(failed)?;
        Ok(Context { hasher, outer, result: Vec::new(), failure: None })
    }

    fn update(&mut self, data: &[u8]) {
        if let Err(error) = self.hasher.update(data) {
            self.failure.get_or_insert(error);
        }
    }

    fn finish(&mut self) -> Result<&[u8]> {
        if let Some(error) = self.failure.take() {
            return Err(failed(error));
        }
        let inner = self.hasher.finish().map_err(failed)?;
        self.result = match &self.outer {
            None => inner.to_vec(),
            Some(outer) => sha256(&[outer.as_slice(), &inner].concat()).to_vec(),
        };
        Ok(&self.result)
    }
}

impl DigestContext for Context {
    fn update(&mut self, data: &[u8]) {
        Context::update(self, data);
    }

    fn finish(&mut self) -> Result<&[u8]> {
        Context::finish(self)
    }
}

impl HmacContext for Context {
    fn update(&mut self, data: &[u8]) {
        Context::update(self, data);
    }

    fn finish(&mut self) -> Result<&[u8]> {
        Context::finish(self)
    }
}

struct Key(PKey<openssl::pkey::Private>);

impl Signer for Key {
    fn sign(&self, text: &[u8]) -> Result<Vec<u8>> {
        let signer = openssl::sign::Signer::new(MessageDigest::sha256(), &self.0);
        signer.and_then(|mut signer| signer.sign_oneshot_to_vec(text)).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn digests_and_keyed_digests_are_those_of_the_standards() {
        let mut digest = OpenSsl.digest(DigestAlgorithm::Sha256).unwrap();
        digest.update(b"a");
        digest.update(b"bc");
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(hex(digest.finish().unwrap()), abc);
        // RFC 4231, cases 1 and 6.
        let cases: [(&[u8], &[u8], &str); 2] = [
            (
                &[0x0b; 20],
                b"Hi There",
                "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7",
            ),
            (
                &[0xaa; 131],
                b"Test Using Larger Than Block-Size Key - Hash Key First",
                "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54",
            ),
        ];
        for (key, text, expected) in cases {
            let mut hmac = OpenSsl.hmac(DigestAlgorithm::Sha256, key).unwrap();
            hmac.update(text);
            assert_eq!(hex(hmac.finish().unwrap()), expected);
        }
    }
}
