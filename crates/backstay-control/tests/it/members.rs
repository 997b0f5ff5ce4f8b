//! Who is a member, and what was changed by whom (ADR 21), in a catalog of either kind.

use std::collections::BTreeSet;

use backstay_control::{Change, JobSpec, Member, OfSource, Role, Token, TokenKind, Whose};
use backstay_format::Slug;
use jiff::{SignedDuration, Timestamp};
use secrecy::ExposeSecret as _;

use crate::catalogs::Place;

fn now() -> Timestamp {
    "2026-01-01T00:00:00Z".parse().unwrap()
}

fn slug(name: &str) -> Slug {
    name.parse().unwrap()
}

#[tokio::test]
async fn member_is_whoever_shows_its_token_until_it_is_revoked_or_too_old() {
    for place in Place::both() {
        let catalog = place.open().await.unwrap();
        let (acme, other) = (slug("acme"), slug("other"));
        let anna = (&acme, &slug("anna"));
        let until = now() + SignedDuration::from_hours(1);
        let token = catalog.add_member(anna, Role::Operator, Some(until), now()).await.unwrap();
        let token = token.unwrap();
        let again = catalog.add_member(anna, Role::Owner, None, now()).await.unwrap();
        assert!(again.is_none(), "the name is taken");
        let namesake = (&other, &slug("anna"));
        let theirs = catalog.add_member(namesake, Role::Viewer, None, now()).await.unwrap();
        let member = catalog.member_of(&token, now()).await.unwrap().unwrap();
        assert_eq!((member.role, &member.organisation), (Role::Operator, &acme));
        assert_eq!(
            catalog.members(Some(&acme), None).await.unwrap(),
            std::slice::from_ref(&member)
        );
        assert_eq!(catalog.members(None, None).await.unwrap().len(), 2);
        catalog.see_member(&member, now()).await.unwrap();
        let seen = catalog.member_of(&token, now()).await.unwrap().unwrap().seen_at;
        assert_eq!(seen, Some(now()));

        let text = token.to_text().expose_secret().to_owned();
        let forged = text.replace(&text[text.len() - 4..], "0000");
        let forged = Token::parse(TokenKind::Member, &forged).unwrap();
        assert_eq!(catalog.member_of(&forged, now()).await.unwrap(), None);
        assert!(Token::parse(TokenKind::Worker, &text).is_err());
        assert_eq!(catalog.worker_of(&token).await.unwrap(), None);
        // Too old at that very moment; then the name is free.
        assert_eq!(catalog.member_of(&token, until).await.unwrap(), None);
        let renewed = catalog.add_member(anna, Role::Viewer, None, until).await.unwrap().unwrap();
        assert!(catalog.revoke_member(anna, until).await.unwrap());
        assert!(!catalog.revoke_member(anna, until).await.unwrap());
        assert_eq!(catalog.member_of(&renewed, until).await.unwrap(), None);
        let theirs = catalog.member_of(&theirs.unwrap(), until).await.unwrap();
        assert!(theirs.is_some(), "another organisation's is another");
    }
}

#[tokio::test]
async fn members_are_listed_page_by_page_each_once() {
    for place in Place::both() {
        let catalog = place.open().await.unwrap();
        place.sql(
            "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 2499)
             INSERT INTO members (id, secret, organisation, name, role, created_at, revoked_at) \
             SELECT CAST(i AS TEXT), '', 'o' || (i % 3), 'm-' || i, 'viewer', 0, CASE WHEN i % 5 = 0 THEN 1 END FROM n;",
        );
        for (organisation, expected) in [(None, 2000), (Some(slug("o1")), 667)] {
            let mut listed: Vec<Member> = Vec::new();
            loop {
                let page = catalog.members(organisation.as_ref(), listed.last()).await.unwrap();
                if page.is_empty() {
                    break;
                }
                listed.extend(page);
            }
            assert_eq!(listed.len(), expected);
            let names: BTreeSet<_> =
                listed.iter().map(|member| (&member.organisation, &member.name)).collect();
            assert_eq!(names.len(), expected, "each once");
            assert!(listed.is_sorted_by_key(|member| &member.organisation));
        }
    }
}

#[tokio::test]
async fn audit_is_of_an_organisation_newest_first_and_forgotten_when_it_is_old() {
    for place in Place::both() {
        let catalog = place.open().await.unwrap();
        let acme = slug("acme");
        let change = |subject: &str| Change {
            actor: "anna".to_owned(),
            action: "delete".to_owned(),
            subject: subject.to_owned(),
            outcome: "done".to_owned(),
        };
        for (at, subject) in [(0, "first"), (500, "second"), (501, "third")] {
            let at = now() + SignedDuration::from_hours(24 * at);
            let id = subject.to_owned();
            catalog.audit((id, "acme"), &change(subject), at).await.unwrap();
        }
        catalog.audit(("x".to_owned(), "other"), &change("theirs"), now()).await.unwrap();
        let subjects = async |limit| {
            let entries = catalog.audit_entries(Some(&acme), limit).await.unwrap();
            entries.into_iter().map(|entry| entry.change.subject).collect::<Vec<_>>()
        };
        assert_eq!(subjects(2).await, ["third", "second"]);
        assert_eq!(catalog.audit_entries(None, 10).await.unwrap().len(), 4);
        catalog.tidy_audit(now() + SignedDuration::from_hours(24 * 502)).await.unwrap();
        assert_eq!(subjects(10).await, ["third", "second"]);
    }
}

#[tokio::test]
async fn job_asked_for_twice_under_one_id_is_one_job() {
    for place in Place::both() {
        let catalog = place.open().await.unwrap();
        for who in ["anna", "bert"] {
            let of = OfSource { organisation: "acme", source: "shop" };
            let named = ("7".to_owned(), of);
            catalog.enqueue(named, (&JobSpec::Test, Some(who)), now()).await.unwrap();
        }
        let jobs = catalog.jobs(Whose::Organisation("acme"), 10).await.unwrap();
        assert_eq!(catalog.jobs(Whose::All, 10).await.unwrap(), jobs);
        assert_eq!(catalog.jobs(Whose::Organisation("other"), 10).await.unwrap(), []);
        assert_eq!((jobs.len(), jobs[0].asked_by.as_deref()), (1, Some("anna")));
        assert!(jobs[0].is_queued_work);
    }
}
