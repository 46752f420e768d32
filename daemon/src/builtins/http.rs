//! HTTP and HTTPS requests: one at a time, redirects followed by hand so that each hop is checked and shown.

use super::url::{Url, percent_decode};
use super::{BuiltinError, BuiltinInput, Timeouts, ca, say, sexp};
use std::io::{Read, Write};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, ProxyProtocol};

/// Most redirects followed for one URL. Upstream has no limit; browsers stop at 20.
const MAX_REDIRECTS: usize = 20;

/// Makes requests with the settings of one download.
pub(super) struct Client<'a> {
    input: &'a BuiltinInput,
    agents: [Option<Agent>; 2],
}

/// The body of a successful answer.
pub(super) struct Body {
    /// Its length as the server declared it, in bytes.
    pub(super) size: Option<u64>,
    /// Its bytes; ends with an error if the server sends fewer than it declared.
    pub(super) reader: Box<dyn Read>,
}

fn failed(url: &Url, reason: impl ToString) -> BuiltinError {
    // What servers and libraries say ends in a log that is read line by line.
    let reason: String = reason.to_string().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    BuiltinError::Fetch { url: sexp::quoted(&url.to_string()), reason }
}

impl<'a> Client<'a> {
    pub(super) fn new(input: &'a BuiltinInput) -> Self {
        Client { input, agents: [None, None] }
    }

    /// Requests `url`, an http or https one, and follows redirects.
    ///
    /// # Errors
    /// `Fetch` when this URL does not give the file, `CaBundle` when the certificate authorities cannot be read.
    pub(super) fn get(&mut self, url: &Url, log: &mut dyn Write) -> Result<Body, BuiltinError> {
        let mut url = url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let mut request = self.agent(&url)?.get(url.request_uri());
            if let Some(user) = &url.userinfo {
                let user = percent_decode(user);
                request = request.header("Authorization", format!("Basic {}", data_encoding::BASE64.encode(&user)));
            }
            let response = request.call().map_err(|e| failed(&url, describe(&e)))?;
            let status = response.status();
            match status.as_u16() {
                200 => {
                    let body = response.into_body();
                    return Ok(Body { size: body.content_length(), reader: Box::new(body.into_reader()) });
                }
                301 | 302 | 303 | 307 | 308 => {
                    let location = response
                        .headers()
                        .get("location")
                        .and_then(|l| std::str::from_utf8(l.as_bytes()).ok())
                        .ok_or_else(|| failed(&url, "redirection without a location"))?;
                    let next = url.resolve(location).ok_or_else(|| failed(&url, "redirection to something that is no URL"))?;
                    if !matches!(next.scheme.as_str(), "http" | "https") {
                        return Err(failed(&url, format!("redirection to {next} refused")));
                    }
                    say(log, &format!("following redirection to `{next}'..."));
                    url = next;
                }
                code => {
                    let phrase = status.canonical_reason().unwrap_or("");
                    return Err(failed(&url, format!("{code} {}", sexp::quoted(phrase))));
                }
            }
        }
        Err(failed(&url, format!("more than {MAX_REDIRECTS} redirections")))
    }

    /// The agent for the scheme of `url`: http and https may have different proxies.
    fn agent(&mut self, url: &Url) -> Result<&Agent, BuiltinError> {
        let https = url.scheme == "https";
        let slot = match (&mut self.agents, https) {
            ([_, slot], true) | ([slot, _], false) => slot,
        };
        if slot.is_none() {
            *slot = Some(new_agent(self.input, url, https)?);
        }
        slot.as_ref().ok_or_else(|| failed(url, "no connection could be prepared"))
    }
}

fn new_agent(input: &BuiltinInput, url: &Url, https: bool) -> Result<Agent, BuiltinError> {
    let roots = match &input.ca_bundle {
        Some(path) if https => {
            let pem =
                ca::read_limited(path, ca::MAX_LEN).map_err(|e| BuiltinError::CaBundle { path: path.clone(), reason: e.to_string() })?;
            RootCerts::new_with_certs(&ca::certificates(&pem, path)?)
        }
        _ => RootCerts::WebPki,
    };
    let variable = if https { "https_proxy" } else { "http_proxy" };
    let proxy = match input.get(variable).filter(|p| !p.is_empty()) {
        None => None,
        Some(text) => {
            // ureq panics on other proxies, for which it has no code compiled in.
            Some(
                ureq::Proxy::new(text)
                    .ok()
                    .filter(|p| matches!(p.protocol(), ProxyProtocol::Http | ProxyProtocol::Https))
                    .ok_or_else(|| failed(url, format!("cannot use the proxy of {variable}")))?,
            )
        }
    };
    let Timeouts { resolve, connect, respond, stall } = input.timeouts;
    let config = Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .max_idle_connections(0)
        .proxy(proxy)
        .user_agent(concat!("fruixd/", env!("CARGO_PKG_VERSION")))
        .timeout_resolve(Timeouts::duration(resolve))
        .timeout_connect(Timeouts::duration(connect))
        .timeout_send_request(Timeouts::duration(respond))
        .timeout_recv_response(Timeouts::duration(respond))
        .timeout_per_read(Timeouts::duration(stall))
        .timeout_per_write(Timeouts::duration(stall))
        .tls_config(TlsConfig::builder().root_certs(roots).build());
    Ok(config.build().into())
}

fn describe(error: &ureq::Error) -> String {
    match error {
        ureq::Error::HostNotFound => "host name cannot be resolved".to_owned(),
        ureq::Error::Timeout(what) => format!("timed out ({what})"),
        ureq::Error::Rustls(e) => format!("TLS: {e}"),
        ureq::Error::Io(e) => e.to_string(),
        other => other.to_string(),
    }
}
