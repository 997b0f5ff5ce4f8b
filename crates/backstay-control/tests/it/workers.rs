//! Who is a worker: invitations, tokens, names (ADR 19).

use std::collections::BTreeSet;

use backstay_control::{
    Allowance, Catalog, EnrolError, Enrolment, Holder, LeaseError, Token, TokenKind,
};
use backstay_format::Slug;
use jiff::{SignedDuration, Timestamp};
use secrecy::ExposeSecret as _;

use crate::catalogs::Place;

fn now() -> Timestamp {
    "2026-01-01T00:00:00Z".parse().unwrap()
}

fn slugs(names: &[&str]) -> BTreeSet<Slug> {
    names.iter().map(|name| name.parse().unwrap()).collect()
}

fn tomorrow() -> Timestamp {
    now() + SignedDuration::from_hours(24)
}

fn wish(token: &Token, name: &str) -> Enrolment {
    Enrolment {
        id: token.id().to_owned(),
        secret: token.digest(),
        name: name.parse().unwrap(),
        labels: None,
        host: "there".to_owned(),
        version: "1".to_owned(),
    }
}

async fn invite(catalog: &Catalog, labels: &[&str]) -> Token {
    let allowance = Allowance { name: None, labels: slugs(labels) };
    catalog.invite(&allowance, tomorrow()).await.unwrap()
}

#[tokio::test]
async fn invitation_makes_one_worker_whose_token_alone_counts() {
    for place in Place::both() {
        let catalog = place.open().await.unwrap();
        let (invitation, own) =
            (invite(&catalog, &["db", "eu"]).await, Token::new(TokenKind::Worker));
        let worker = catalog.enrol(&invitation, &wish(&own, "db1"), false, now()).await.unwrap();
        assert_eq!((worker.name.as_str(), &worker.labels), ("db1", &slugs(&["db", "eu"])));
        // An answer that was lost is given again.
        let again = catalog.enrol(&invitation, &wish(&own, "db1"), false, now()).await.unwrap();
        assert_eq!(again, worker);
        assert_eq!(catalog.worker_of(&own).await.unwrap(), Some(worker.clone()));
        let text = own.to_text().expose_secret().to_owned();
        let forged =
            Token::parse(TokenKind::Worker, &text.replace(&text[text.len() - 4..], "0000"));
        assert_eq!(catalog.worker_of(&forged.unwrap()).await.unwrap(), None);
        assert!(Token::parse(TokenKind::Invitation, &text).is_err());
        let other = wish(&Token::new(TokenKind::Worker), "db2");
        let used = catalog.enrol(&invitation, &other, false, now()).await;
        assert!(matches!(used, Err(EnrolError::NotInvited)), "{used:?}");
        // The same with another secret is somebody else, and frees nothing.
        let forged = Enrolment { secret: other.secret, ..wish(&own, "db1") };
        let refused = catalog.enrol(&invitation, &forged, false, now()).await;
        assert!(matches!(refused, Err(EnrolError::NameTaken { .. })), "{refused:?}");
        let used = catalog.enrol(&invitation, &other, false, now()).await;
        assert!(matches!(used, Err(EnrolError::NotInvited)), "{used:?}");
        // Revoked, it is nobody, and what made it a worker does so no more.
        assert!(catalog.revoke_worker(&worker.name, now()).await.unwrap());
        assert_eq!(catalog.worker_of(&own).await.unwrap(), None);
        assert_eq!(catalog.workers().await.unwrap(), []);
        let back = catalog.enrol(&invitation, &wish(&own, "db1"), false, now()).await;
        assert!(matches!(back, Err(EnrolError::NotInvited)), "{back:?}");
    }
}

#[tokio::test]
async fn invitation_is_not_used_up_by_a_name_that_is_taken_and_ends_with_its_time() {
    for place in Place::both() {
        let catalog = place.open().await.unwrap();
        let (first, second) = (invite(&catalog, &[]).await, invite(&catalog, &[]).await);
        let enrol = async |invitation: &Token, name: &str, at: Timestamp| {
            catalog.enrol(invitation, &wish(&Token::new(TokenKind::Worker), name), false, at).await
        };
        enrol(&first, "db1", now()).await.unwrap();
        let taken = enrol(&second, "db1", now()).await;
        assert!(matches!(taken, Err(EnrolError::NameTaken { .. })), "{taken:?}");
        let late = enrol(&second, "db2", tomorrow()).await;
        assert!(matches!(late, Err(EnrolError::NotInvited)), "{late:?}");
        enrol(&second, "db2", now()).await.unwrap();
    }
}

#[tokio::test]
async fn name_that_sources_ask_for_is_only_for_whom_it_was_given_to() {
    for place in Place::both() {
        let catalog = place.open().await.unwrap();
        let own = wish(&Token::new(TokenKind::Worker), "db1");
        let open = invite(&catalog, &[]).await;
        let refused = catalog.enrol(&open, &own, true, now()).await;
        assert!(matches!(refused, Err(EnrolError::NotAllowed { .. })), "{refused:?}");
        let allowance = Allowance { name: Some("db1".parse().unwrap()), ..Allowance::default() };
        let named = catalog.invite(&allowance, tomorrow()).await.unwrap();
        catalog.enrol(&named, &own, true, now()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_who_show_one_invitation_one_becomes_a_worker() {
    for place in Place::both() {
        let catalog = place.open().await.unwrap();
        let invitation = invite(&catalog, &[]).await;
        let enrolled = futures_util::future::join_all((0..8).map(|i| {
            let (catalog, invitation) = (catalog.clone(), invitation.clone());
            async move {
                let wish = wish(&Token::new(TokenKind::Worker), &format!("db{i}"));
                catalog.enrol(&invitation, &wish, false, now()).await
            }
        }));
        let enrolled = enrolled.await.into_iter().filter(Result::is_ok).count();
        assert_eq!(enrolled, 1, "{}", place.name());
        assert_eq!(catalog.workers().await.unwrap().len(), 1);
    }
}

#[tokio::test]
async fn lease_that_was_taken_over_is_no_more_of_whom_it_was_taken_from() {
    for place in Place::both() {
        let catalog = place.open().await.unwrap();
        let me = Holder::this_process("here");
        let worker = Holder { host: "db1".to_owned(), boot: "worker 1".to_owned(), ..me.clone() };
        let theirs = catalog.lease("shop", &worker, now()).await.unwrap();
        let ours = catalog.take_over(&theirs, &me, now()).await.unwrap();
        assert!(ours.token() > theirs.token());
        let is_lost =
            |result: Result<(), LeaseError>| matches!(result, Err(LeaseError::Lost { .. }));
        assert!(is_lost(catalog.renew(&theirs, now()).await));
        assert!(is_lost(catalog.take_over(&theirs, &me, now()).await.map(drop)));
        catalog.release(&theirs).await.unwrap();
        catalog.renew(&ours, now()).await.unwrap();
        catalog.release(&ours).await.unwrap();
        // What was given back is nobody's to take over.
        assert!(is_lost(catalog.take_over(&ours, &me, now()).await.map(drop)));
    }
}
