//! The credentials that a machine has by itself.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use object_store::CredentialProvider;
use object_store::aws::AwsCredential;
use reqsign_aws_core::{Credential, DefaultCredentialProvider};
use reqsign_command_execute_tokio::TokioCommandExecute;
use reqsign_core::{Context, OsEnv, ProvideCredential as _};
use reqsign_file_read_tokio::TokioFileRead;
use reqsign_http_send_reqwest::ReqwestHttpSend;
use tokio::sync::Mutex;

/// A machine without an instance role must say so soon: nothing answers there.
const DEADLINE: Duration = Duration::from_secs(15);
/// Temporary credentials are asked for anew this long before they end.
const MARGIN_SECS: i64 = 300;

/// Nothing on this machine offers credentials.
#[derive(Debug, thiserror::Error)]
#[error(
    "no credentials in the environment (AWS_ACCESS_KEY_ID), in an AWS profile, from SSO, a process, a web identity, a container or an instance role"
)]
pub(super) struct NoCredentials;

/// Looks for credentials where AWS's own tools do, in their order.
#[derive(Debug)]
pub(super) struct Chain {
    provider: DefaultCredentialProvider,
    context: Context,
    cached: Mutex<Option<Credential>>,
}

impl Chain {
    pub(super) fn new(profile: Option<&str>) -> Self {
        let mut builder = DefaultCredentialProvider::builder();
        if let Some(profile) = profile {
            // Who names a profile means it: neither the environment nor the machine's role may answer in its place.
            builder = builder.with_profile(profile).no_env().no_web_identity().no_ecs().no_imds();
        }
        let context = Context::new()
            .with_file_read(TokioFileRead)
            .with_http_send(ReqwestHttpSend::new(reqwest::Client::new()))
            .with_command_execute(TokioCommandExecute)
            .with_env(OsEnv);
        Self { provider: builder.build(), context, cached: Mutex::new(None) }
    }

    async fn load(&self) -> Result<Credential, NoCredentials> {
        let asked = tokio::time::timeout(DEADLINE, self.provider.provide_credential(&self.context));
        match asked.await {
            Ok(Ok(Some(found)))
                if !found.access_key_id.is_empty() && !found.secret_access_key.is_empty() =>
            {
                Ok(found)
            }
            _ => Err(NoCredentials),
        }
    }
}

#[async_trait]
impl CredentialProvider for Chain {
    type Credential = AwsCredential;

    #[expect(
        clippy::disallowed_methods,
        reason = "expiry is told by the machine's clock; nothing of a backup depends on it"
    )]
    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        let mut cached = self.cached.lock().await;
        let soon = Timestamp::now().as_second() + MARGIN_SECS;
        let fresh =
            cached.as_ref().is_some_and(|c| c.expires_in.is_none_or(|end| end.as_second() > soon));
        if !fresh {
            let found = self.load().await;
            *cached = Some(found.map_err(|cause| object_store::Error::Generic {
                store: "S3",
                source: Box::new(cause),
            })?);
        }
        let Some(found) = cached.as_ref() else {
            return Err(object_store::Error::Generic {
                store: "S3",
                source: Box::new(NoCredentials),
            });
        };
        Ok(Arc::new(AwsCredential {
            key_id: found.access_key_id.clone(),
            secret_key: found.secret_access_key.clone(),
            token: found.session_token.clone(),
        }))
    }
}
