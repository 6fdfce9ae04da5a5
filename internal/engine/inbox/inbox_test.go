package inbox_test

import (
	"context"
	"crypto/md5" //nolint:gosec // the only digest that SQL makes a UUID of
	"crypto/rand"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/inbox"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// claimIn claims entries in tx.
func claimIn(ctx context.Context, tx pgx.Tx, consumer string, entries ...inbox.Entry) ([]inbox.Verdict, error) {
	batch := &pgx.Batch{}
	claims := inbox.Claim(batch, consumer, entries)

	if err := tx.SendBatch(ctx, batch).Close(); err != nil {
		return nil, err
	}

	return claims.Verdicts(ctx, tx)
}

func claim(t *testing.T, pool *pgxpool.Pool, consumer string, entries ...inbox.Entry) []inbox.Verdict {
	t.Helper()

	var verdicts []inbox.Verdict

	err := postgres.InTx(t.Context(), pool, func(tx pgx.Tx) (err error) {
		verdicts, err = claimIn(t.Context(), tx, consumer, entries...)

		return err
	})
	if err != nil {
		t.Fatal(err)
	}

	return verdicts
}

func TestClaim(t *testing.T) {
	t.Parallel()

	pool := pgtest.New(t)
	a := inbox.Entry{ID: event.NewID(), Fingerprint: 1}
	b := inbox.Entry{ID: event.ForeignID("b"), Fingerprint: 2}
	otherA := inbox.Entry{ID: a.ID, Fingerprint: 9}

	for _, step := range []struct {
		name     string
		consumer string
		entries  []inbox.Entry
		want     []inbox.Verdict
	}{
		{"new messages are fresh, a repetition is not", "c", []inbox.Entry{a, b, a}, []inbox.Verdict{inbox.Fresh, inbox.Fresh, inbox.Duplicate}},
		{"a redelivery is a duplicate", "c", []inbox.Entry{b, a}, []inbox.Verdict{inbox.Duplicate, inbox.Duplicate}},
		{"another payload under the same id is a conflict", "c", []inbox.Entry{otherA}, []inbox.Verdict{inbox.Conflict}},
		{"consumers do not share claims", "d", []inbox.Entry{a}, []inbox.Verdict{inbox.Fresh}},
	} {
		if diff := cmp.Diff(step.want, claim(t, pool, step.consumer, step.entries...)); diff != "" {
			t.Errorf("%s: %s", step.name, diff)
		}
	}
}

func TestClaimNew(t *testing.T) {
	t.Parallel()

	pool := pgtest.New(t)
	a, b, c := inbox.Entry{ID: event.NewID()}, inbox.Entry{ID: event.ForeignID("b")}, inbox.Entry{ID: event.NewID()}

	for _, step := range []struct {
		name    string
		entries []inbox.Entry
		want    error
	}{
		{"new messages are claimed", []inbox.Entry{a, b}, nil},
		{"a redelivery is noticed, and nothing is claimed", []inbox.Entry{c, b}, inbox.ErrClaimed},
		{"a repetition is noticed", []inbox.Entry{c, c}, inbox.ErrClaimed},
		{"so the others are still new", []inbox.Entry{c}, nil},
	} {
		batch := &pgx.Batch{}
		inbox.ClaimNew(batch, "c", step.entries)

		if err := pool.SendBatch(t.Context(), batch).Close(); !errors.Is(err, step.want) {
			t.Errorf("%s: got %v, expected %v", step.name, err, step.want)
		}
	}

	want := []inbox.Verdict{inbox.Duplicate, inbox.Duplicate, inbox.Duplicate}
	if diff := cmp.Diff(want, claim(t, pool, "c", a, b, c)); diff != "" {
		t.Error(diff)
	}
}

func TestARolledBackClaimDoesNotCount(t *testing.T) {
	t.Parallel()

	pool := pgtest.New(t)
	entry := inbox.Entry{ID: event.NewID()}

	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}

	if _, err := claimIn(t.Context(), tx, "c", entry); err != nil {
		t.Fatal(err)
	}

	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}

	if got := claim(t, pool, "c", entry); got[0] != inbox.Fresh {
		t.Errorf("got %v, expected fresh", got)
	}
}

func TestConcurrentClaimsOfAMessageHaveOneWinner(t *testing.T) {
	t.Parallel()

	pool := pgtest.New(t)
	entry := inbox.Entry{ID: event.NewID()}

	first, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}

	if _, err := claimIn(t.Context(), first, "c", entry); err != nil {
		t.Fatal(err)
	}

	second := make(chan []inbox.Verdict)
	go func() { second <- claim(t, pool, "c", entry) }()

	pgtest.Eventually(t, "the second claim waits for the first", func() bool {
		return pgtest.Value[bool](t, pool, `SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)`)
	})

	if err := first.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}

	if got := <-second; got[0] != inbox.Duplicate {
		t.Errorf("got %v, expected a duplicate", got)
	}
}

func TestARedeliveryAfterMidnightFindsItsPartition(t *testing.T) {
	t.Parallel()

	pool := pgtest.New(t)
	ctx := t.Context()
	// An ID from the distant future: its day has no partition yet.
	id := uuid.MustParse("01f0a5d0-0000-7000-8000-000000000001")
	day := inbox.Day(id)

	if got := claim(t, pool, "c", inbox.Entry{ID: id}); got[0] != inbox.Fresh {
		t.Fatalf("got %v", got)
	}

	if n := pgtest.Value[int](t, pool, `SELECT count(*)::int FROM inbox_default`); n != 1 {
		t.Fatalf("the default partition has %d rows, expected 1", n)
	}

	for _, now := range []time.Time{day.Add(-time.Hour), day.Add(time.Hour), day.Add(25 * time.Hour)} {
		if err := inbox.Partitions.Ensure(ctx, pool, now); err != nil {
			t.Fatal(err)
		}

		if got := claim(t, pool, "c", inbox.Entry{ID: id}); got[0] != inbox.Duplicate {
			t.Errorf("at %s: got %v, expected a duplicate", now, got)
		}
	}

	if n := pgtest.Value[int](t, pool, `SELECT count(*)::int FROM inbox_default`); n != 0 {
		t.Errorf("the default partition still has %d rows", n)
	}
}

func TestEntriesAreLookedUpByKey(t *testing.T) {
	t.Parallel()

	pgtest.LooksUpByKey(t, []string{"inbox_default"},
		func(t *testing.T, tx pgx.Tx, from, to int) {
			t.Helper()

			_, err := tx.Exec(t.Context(), `
				INSERT INTO inbox (consumer, message_id, day, fingerprint)
				SELECT 'c', md5(n::text)::uuid, '1970-01-01', 1 FROM generate_series($1::int, $2::int) AS n`, from, to)
			if err != nil {
				t.Fatal(err)
			}
		},
		func(t *testing.T, tx pgx.Tx) {
			t.Helper()

			known := inbox.Entry{ID: uuid.UUID(md5.Sum([]byte("1"))), Fingerprint: 1} //nolint:gosec // as in SQL
			entries := []inbox.Entry{known}

			for range 99 {
				entries = append(entries, inbox.Entry{ID: event.ForeignID(rand.Text())})
			}

			verdicts, err := claimIn(t.Context(), tx, "c", entries...)
			if err != nil || verdicts[0] != inbox.Duplicate || verdicts[1] != inbox.Fresh {
				t.Fatalf("%v, %v", verdicts, err)
			}

			if err := inbox.Unclaim(t.Context(), tx, "c", entries[1:]); err != nil {
				t.Fatal(err)
			}
		})
}

func TestDayDependsOnlyOnTheID(t *testing.T) {
	t.Parallel()

	if got := inbox.Day(uuid.MustParse("01890a5d-ac96-774b-bcce-b302099a8057")); got.Format(time.DateOnly) != "2023-06-30" {
		t.Errorf("got %s", got)
	}

	if got := inbox.Day(event.ForeignID("x")); !got.Equal(time.Unix(0, 0)) {
		t.Errorf("got %s", got)
	}
}
