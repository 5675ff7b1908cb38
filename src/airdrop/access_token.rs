//! A token of the source that expires.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use super::source_error::SourceError;

/// An access token that the source gives out for a secret, and that expires. It is kept in memory alone.
///
/// ```
/// use highwater::airdrop::{AccessToken, SourceError};
///
/// struct Client {
///     secret: String,
///     token: AccessToken,
/// }
///
/// impl Client {
///     fn issues(&self) -> Result<String, SourceError> {
///         self.token.with(|| self.sign_in(), |token| self.get("/issues", token))
///     }
///     fn sign_in(&self) -> Result<String, SourceError> {
///         // in production: a request
///         Ok(format!("a token for {}", self.secret))
///     }
///     fn get(&self, path: &str, token: &str) -> Result<String, SourceError> {
///         match (if token.is_empty() { 401 } else { 200 }, "the body") {
///             (200, body) => Ok(body.to_owned()),
///             (status, _) => Err(SourceError::from_status(path, status, None)),
///         }
///     }
/// }
/// # let client = Client { secret: "secret".to_owned(), token: AccessToken::new() };
/// # assert_eq!(client.issues().unwrap(), "the body");
/// ```
#[derive(Default)]
pub struct AccessToken(Mutex<Option<Arc<str>>>);

impl AccessToken {
    /// Without a token yet: the first call gets one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes a call with the token. If there is none yet, `renew` gets one. If the call fails with status 401
    /// ([`SourceError::from_status`]), `renew` gets a new one and the call is made once more.
    ///
    /// If several threads need a new token, one of them gets it and the others wait.
    ///
    /// # Errors
    /// Those of `renew` and of the last call.
    pub fn with<T>(
        &self,
        renew: impl Fn() -> Result<String, SourceError>,
        call: impl Fn(&str) -> Result<T, SourceError>,
    ) -> Result<T, SourceError> {
        let token = self.newer_than(None, &renew)?;
        match call(&token) {
            Err(SourceError::Failed { status: Some(401), .. }) => {
                call(&self.newer_than(Some(&token), &renew)?)
            }
            result => result,
        }
    }

    /// The token; a new one if there is none yet, or if it is the one that was refused.
    fn newer_than(
        &self,
        refused: Option<&Arc<str>>,
        renew: impl Fn() -> Result<String, SourceError>,
    ) -> Result<Arc<str>, SourceError> {
        // Nothing is half done if `renew` panics: the old token stays.
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*known {
            // A source may give the same text again, so the allocations are compared.
            Some(token) if refused.is_none_or(|refused| !Arc::ptr_eq(refused, token)) => {
                Ok(Arc::clone(token))
            }
            _ => Ok(Arc::clone(known.insert(renew()?.into()))),
        }
    }
}

/// Does not show the token.
impl fmt::Debug for AccessToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccessToken").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    fn expired() -> SourceError {
        SourceError::from_status("/issues", 401, None)
    }

    /// `valid`: the number of the token that the source accepts.
    fn call(valid: u32) -> impl Fn(&str) -> Result<String, SourceError> {
        move |token| if token == format!("token {valid}") { Ok(token.to_owned()) } else { Err(expired()) }
    }

    #[test]
    fn a_token_is_got_once_and_again_only_after_a_401() {
        let (token, got) = (AccessToken::new(), AtomicU32::new(0));
        let renew = || Ok(format!("token {}", got.fetch_add(1, Ordering::Relaxed)));
        for (valid, renewals) in [(0, 1), (0, 1), (1, 2), (1, 2)] {
            assert_eq!(token.with(renew, call(valid)).unwrap(), format!("token {valid}"));
            assert_eq!(got.load(Ordering::Relaxed), renewals);
        }
        let refused = token.with(renew, call(9)).unwrap_err();
        assert!(matches!(refused, SourceError::Failed { status: Some(401), .. }), "{refused:?}");
        assert_eq!(got.load(Ordering::Relaxed), 3, "a second 401 is the error");
        for status in [403, 404, 429, 500] {
            let other = |_: &str| Err::<(), _>(SourceError::from_status("/issues", status, None));
            token.with(renew, other).unwrap_err();
            assert_eq!(got.load(Ordering::Relaxed), 3, "{status} says nothing about the token");
        }
    }

    #[test]
    fn if_no_token_is_got_the_next_call_asks_for_one() {
        let token = AccessToken::new();
        let failed = token.with(|| Err("no".into()), call(0)).unwrap_err();
        assert!(matches!(failed, SourceError::Failed { status: None, .. }), "{failed:?}");
        assert_eq!(token.with(|| Ok("token 0".to_owned()), call(0)).unwrap(), "token 0");
    }

    #[test]
    fn threads_whose_token_expires_at_once_renew_it_once() {
        let (token, got, all) = (AccessToken::new(), AtomicU32::new(0), Barrier::new(8));
        let renew = || Ok(format!("token {}", got.fetch_add(1, Ordering::Relaxed)));
        token.with(renew, call(0)).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let call = |text: &str| {
                        if text == "token 0" {
                            all.wait();
                        }
                        call(1)(text)
                    };
                    token.with(renew, call).unwrap();
                });
            }
        });
        assert_eq!(got.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn debug_does_not_show_it() {
        let token = AccessToken::new();
        token.with(|| Ok("secret".to_owned()), |_| Ok(())).unwrap();
        assert!(!format!("{token:?}").contains("secret"));
    }
}
