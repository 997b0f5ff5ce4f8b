//! The words between a server and its workers, as JSON. Unknown fields are ignored and new ones have defaults, so that one
//! minor release more or less on either side is understood.

use backstay_control::Progress;
use serde::{Deserialize, Serialize};

/// The number of this protocol. It grows when an older program would misunderstand.
pub const PROTOCOL: u32 = 1;
/// The header that carries it in each request.
pub const PROTOCOL_HEADER: &str = "backstay-protocol";

/// A worker wants to become one.
#[derive(Debug, Serialize, Deserialize)]
pub struct EnrolRequest {
    /// The token of an invitation.
    pub invitation: String,
    /// The id of the token that the worker made for itself.
    pub id: String,
    /// The SHA-256 of that token's secret, in hexadecimal digits.
    pub secret: String,
    /// What it wants to be called.
    pub name: String,
    /// The labels that it wants; all that the invitation allows if left out.
    #[serde(default)]
    pub labels: Option<Vec<String>>,
    /// Its machine.
    pub host: String,
    /// The version of its program.
    pub version: String,
}

/// It is one.
#[derive(Debug, Serialize, Deserialize)]
pub struct Enrolled {
    /// What it is called.
    pub name: String,
    /// Its labels.
    #[serde(default)]
    pub labels: Vec<String>,
}

/// Which process of a worker asks; one that was started anew does not go on with the jobs of the one before.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Process {
    /// A word that it made up when it started.
    pub instance: String,
    /// Its number on its machine.
    pub pid: u32,
}

/// A worker is there, and may want work.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TakeRequest {
    /// Who asks.
    pub process: Process,
    /// Its machine.
    pub host: String,
    /// The version of its program.
    pub version: String,
    /// Whether it has room for a job.
    pub has_room: bool,
    /// How many seconds it would wait for one.
    #[serde(default)]
    pub patience: u64,
    /// Whether it ends now, and wants nothing any more.
    #[serde(default)]
    pub leaves: bool,
}

/// What there is for it.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct TakeAnswer {
    /// A job, if there is one.
    #[serde(default)]
    pub job: Option<Grant>,
}

/// A job and all that is needed to do it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Grant {
    /// Its id.
    pub job: String,
    /// Of which source.
    pub source: String,
    /// The leases that go with it; reports renew them.
    pub leases: Vec<LeaseRef>,
    /// What is to be done, with its secrets. Both sides know what that is; nobody in between does.
    pub work: serde_json::Value,
}

/// Names a lease.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LeaseRef {
    /// What it is the right to.
    pub name: String,
    /// Its number.
    pub token: i64,
}

/// How far a job is. Renews its leases.
#[derive(Debug, Serialize, Deserialize)]
pub struct JobReport {
    /// Who does it.
    pub process: Process,
    /// Which job.
    pub job: String,
    /// Its leases, that of its source first.
    pub leases: Vec<LeaseRef>,
    /// How far it is, if that has changed.
    #[serde(default)]
    pub progress: Option<Progress>,
}

/// What the server has to say to that.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct ReportAnswer {
    /// Why the job is to be stopped, if it is.
    #[serde(default)]
    pub cancel: Option<String>,
}

/// A job has ended, as far as the worker is concerned.
#[derive(Debug, Serialize, Deserialize)]
pub struct JobEnd {
    /// Who did it.
    pub process: Process,
    /// Which job.
    pub job: String,
    /// Its leases, that of its source first.
    pub leases: Vec<LeaseRef>,
    /// What came of it.
    pub outcome: Outcome,
    /// What was said meanwhile, line by line.
    #[serde(default)]
    pub log: String,
    /// Of what changes a source: whether the worker keeps what a restore of it replaced.
    #[serde(default)]
    pub keeps: Option<bool>,
}

/// What came of a job.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "kebab-case")]
pub enum Outcome {
    /// A backup, which the server is to read before it believes it.
    Made {
        /// Its id.
        backup: String,
        /// What failed after it was made.
        #[serde(default)]
        trouble: Option<String>,
    },
    /// A backup was restored into a scratch place.
    Drilled {
        /// What that showed. Both sides know what that is; nobody in between does.
        report: serde_json::Value,
    },
    /// The source was looked at, and can be backed up.
    Tested {
        /// What it is, in a line.
        summary: String,
        /// What a person should know before a backup.
        #[serde(default)]
        warnings: Vec<String>,
    },
    /// Something else was done.
    Done {
        /// What came of it. Both sides know what that is; nobody in between does.
        answer: serde_json::Value,
    },
    /// Nothing.
    Failed {
        /// Why.
        error: String,
        /// Whether another try may go better.
        #[serde(default)]
        passing: Option<Passing>,
    },
    /// Nothing, since it was told to stop.
    Stopped {
        /// What that made of it.
        error: String,
        /// Who told it.
        by: Stop,
    },
}

/// What passes by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Passing {
    /// The job gave way to the app.
    GaveWay,
    /// Something is out of order for now.
    Outage,
}

/// Who stops a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stop {
    /// Somebody who cancelled it.
    Cancelled,
    /// The worker itself, which was told to end.
    WorkerEnds,
}
