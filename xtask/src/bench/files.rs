//! A tree of small files and one large file, to a real S3 server and back.

use std::fs;
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::process::Command;

use anyhow::ensure;

use crate::bench::measure::{Cost, measure, medians};
use crate::bench::server::Server;
use crate::bench::subject::{Bench, Subject};
use crate::bench::{Common, Scratch, backstay, print_head, print_rows};

/// How much is measured, and how often.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Files in the tree
    #[arg(long, default_value_t = 20_000)]
    files: usize,
    /// Size of the large file
    #[arg(long, default_value_t = 1024)]
    file_mib: usize,
    #[command(flatten)]
    common: Common,
}

/// Measures everything and prints one table in Markdown.
pub(crate) fn run(options: &Options, root: &Path, tools: &Path) -> anyhow::Result<()> {
    let program = backstay(options.common.program.as_deref(), root)?;
    let scratch = Scratch::create(&root.join("target/bench"))?;
    let tree = scratch.0.join("tree");
    make_tree(&tree, options.files)?;
    let large = scratch.0.join("large");
    fs::create_dir(&large)?;
    write_text(&large.join("large.txt"), options.file_mib << 20, 1)?;
    let server = Server::start(&tools.join("rclone"), &scratch.0.join("server"))?;
    print_head();
    for (what, data) in [("tree", &tree), ("large file", &large)] {
        let course =
            Course { server: &server, program: &program, tools, data, scratch: &scratch.0 };
        let results = course.run(what, options.common.runs)?;
        let named = |cost: fn(&(Cost, Cost)) -> Cost| -> Vec<(&str, Cost)> {
            Subject::ALL.into_iter().map(Subject::name).zip(results.iter().map(cost)).collect()
        };
        print_rows(&format!("{what}, backup"), &named(|result| result.0));
        print_rows(&format!("{what}, restore"), &named(|result| result.1));
    }
    Ok(())
}

/// What all runs over one directory share.
struct Course<'a> {
    server: &'a Server,
    program: &'a Path,
    tools: &'a Path,
    data: &'a Path,
    scratch: &'a Path,
}

impl Course<'_> {
    /// Runs every subject in turn, so that a change of the machine's mood meets all of them.
    fn run(&self, what: &str, runs: usize) -> anyhow::Result<[(Cost, Cost); 3]> {
        let mut costs: [Vec<(Cost, Cost)>; 3] = Default::default();
        for run in 0..runs.max(1) {
            let mut turns: Vec<_> = Subject::ALL.into_iter().zip(&mut costs).collect();
            // Everybody comes first once: what the one before leaves to server and disk meets all of them.
            turns.rotate_left(run % Subject::ALL.len());
            for (subject, costs) in turns {
                let name = format!("{}-{run}-{subject:?}", what.replace(' ', "-")).to_lowercase();
                costs.push(self.once(subject, &name)?);
            }
        }
        Ok(costs.map(|costs| {
            let (backups, restores): (Vec<Cost>, Vec<Cost>) = costs.into_iter().unzip();
            (medians(&backups), medians(&restores))
        }))
    }

    fn once(&self, subject: Subject, name: &str) -> anyhow::Result<(Cost, Cost)> {
        let scratch = self.scratch.join(name);
        let restored = scratch.join("restored");
        // Kept to the end: ext4 searches long for inodes while thousands were freed a moment ago, and whoever restores
        // next would pay for it.
        let bench = Bench {
            subject,
            server: self.server,
            program: self.program,
            tools: self.tools,
            data: self.data,
            scratch: &scratch,
            prefix: name,
        };
        bench.prepare()?;
        // What others have written and the disk does not have yet would be paid for by whoever asks for durability next.
        settle()?;
        let mut backup = measure(&mut bench.backup(), self.server.pid())?;
        backup.stored_mib = self.server.stored_mib(name)?;
        settle()?;
        let mut restore = measure(&mut bench.restore(&restored), self.server.pid())?;
        restore.stored_mib = backup.stored_mib;
        let equal = Command::new("diff").arg("-rq").arg(self.data).arg(&restored).status()?;
        ensure!(equal.success(), "{subject:?} gave back something else");
        Ok((backup, restore))
    }
}

/// Waits until the disk has everything.
fn settle() -> anyhow::Result<()> {
    ensure!(Command::new("sync").status()?.success(), "sync failed");
    Ok(())
}

/// Makes a tree of files of 0 to 60 KiB, a hundred in each directory.
fn make_tree(tree: &Path, files: usize) -> anyhow::Result<()> {
    for file in 0..files {
        let directory = tree.join(format!("d{}", file / 100));
        fs::create_dir_all(&directory)?;
        write_text(&directory.join(format!("f{file}.txt")), file * 7919 % 61_440, file as u64 + 2)?;
    }
    Ok(())
}

/// Writes lines of words and numbers that shrink to about a third, the same for the same seed.
fn write_text(path: &Path, bytes: usize, seed: u64) -> anyhow::Result<()> {
    let mut file = BufWriter::with_capacity(1 << 20, fs::File::create(path)?);
    let (mut left, mut state) = (bytes, seed);
    while left > 0 {
        // Knuth's linear congruential generator: anyone can make the same data again.
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let line = format!(
            "{{\"id\": {}, \"name\": \"customer {}\", \"note\": \"{:x}\"}}\n",
            state >> 44,
            state >> 54,
            state
        );
        let line = line.as_bytes().get(..left.min(line.len())).unwrap_or_default();
        file.write_all(line)?;
        left -= line.len();
    }
    Ok(file.flush()?)
}
