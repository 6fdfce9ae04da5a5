package outbox_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/outbox"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// counter is a publisher that accepts all messages.
type counter struct{ messages atomic.Int64 }

func (c *counter) Publish(_ string, messages ...*message.Message) error {
	c.messages.Add(int64(len(messages)))

	return nil
}

func (*counter) Close() error { return nil }

// TestALateCommitIsNotOvertakenByItsKey keeps a transaction with a sequence number
// open while thousands of other rows are published, and then commits it together with
// a later row of its key.
func TestALateCommitIsNotOvertakenByItsKey(t *testing.T) {
	t.Parallel()

	pool := pgtest.New(t)
	published := &log{}
	cfg := outbox.DefaultConfig()
	cfg.PollInterval = 10 * time.Second // full reads must not help
	wake, stop := relayWith(t, pool, published, cfg)
	defer stop()

	for round := range 3 {
		late, err := pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}

		key := fmt.Sprint("late", round)
		if err := outbox.AppendMessages(t.Context(), late, []event.Message{{ID: event.NewID(), Topic: "t", Key: key, Payload: []byte("1")}}); err != nil {
			t.Fatal(err)
		}

		// Long enough for several marks.
		for begun, n := time.Now(), 0; time.Since(begun) < time.Second; n++ {
			other := fmt.Sprintf("other%d-%d", round, n)
			appendMessage(t, pool, other, "x")
			wake()
			pgtest.Eventually(t, "the others are published", func() bool { return slices.Contains(published.firsts(), other+"=x") })
		}

		if err := late.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}

		appendMessage(t, pool, key, "2")
		wake()
		pgtest.Eventually(t, "both are published", func() bool { return slices.Contains(published.firsts(), key+"=2") })

		got := slices.DeleteFunc(published.firsts(), func(entry string) bool { return !strings.HasPrefix(entry, key) })
		if !slices.Equal(got, []string{key + "=1", key + "=2"}) {
			t.Errorf("published %v", got)
		}
	}
}

// TestReadsSkipRowsKeptByAnOldTransaction counts the index entries that reads
// scan.
func TestReadsSkipRowsKeptByAnOldTransaction(t *testing.T) {
	t.Parallel()

	pool := pgtest.New(t)

	old, err := pool.BeginTx(t.Context(), pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	if err != nil {
		t.Fatal(err)
	}

	defer func() { _ = old.Rollback(context.Background()) }()

	if _, err := old.Exec(t.Context(), `SELECT count(*) FROM outbox`); err != nil {
		t.Fatal(err)
	}

	const many = 20_000

	messages := make([]event.Message, many)
	for i := range messages {
		messages[i] = event.Message{ID: event.NewID(), Topic: "t", Key: fmt.Sprint(i), Payload: []byte("x")}
	}

	appendMessages(t, pool, messages...)

	entriesRead(t, pool, 0)

	// Each message takes at least one read, and reads before the first mark scan all kept
	// entries. Writers anywhere on the server delay that mark, so a relay has more and
	// more messages to reach it.
	each := 150

	var read int64

	pgtest.Eventually(t, "reads start at the mark", func() bool {
		each *= 2
		read = entriesRead(t, pool, each)

		return read < int64(each*many/10)
	})

	t.Logf("%d reads scanned %d entries", each, read)
}

// A session reads only the topics of its broker. The rows of one that is down stay, and
// each read from the beginning passes over them in the index that all sessions share.
func TestReadsPassOverTheRowsOfABrokerThatIsDown(t *testing.T) {
	t.Parallel()

	const waiting = 2_000

	pool := pgtest.New(t)
	messages := make([]event.Message, waiting)

	for i := range messages {
		messages[i] = event.Message{ID: event.NewID(), Topic: "elsewhere", Key: fmt.Sprint(i), Payload: []byte("x")}
	}

	appendMessages(t, pool, messages...)
	appendMessage(t, pool, "a", "1")

	before := entriesPassed(t, pool)
	relay := outbox.NewRelay(outbox.DefaultConfig(), pool, pgtest.Logger(t), prometheus.NewRegistry())
	published := &counter{}
	ctx, stop := context.WithCancel(t.Context())

	var running sync.WaitGroup

	running.Go(func() { relay.Run(ctx, outbox.Target{Publisher: published, Lanes: 8, Except: []string{"elsewhere"}}) })
	pgtest.Eventually(t, "the other topic is published", func() bool {
		return pgtest.Value[int](t, pool, `SELECT count(*)::int FROM outbox`) == waiting
	})
	stop()
	running.Wait()
	sessionsEnd(t, pool)

	if n := entriesPassed(t, pool) - before; n < waiting {
		t.Errorf("a read passed over %d entries, expected all %d of the other broker", n, waiting)
	}
}

// entriesRead runs a relay until it has published what is in the outbox and then n
// messages one after the other. It returns the number of rows and index entries read.
func entriesRead(t *testing.T, pool *pgxpool.Pool, n int) int64 {
	t.Helper()

	before := entriesPassed(t, pool)
	published := &counter{}
	cfg := outbox.DefaultConfig()
	cfg.PollInterval = time.Minute // no full reads in between
	wake, stop := relayWith(t, pool, published, cfg)

	pgtest.Eventually(t, "the outbox is empty", empty(t, pool))

	for i := range n {
		already := published.messages.Load()

		appendMessage(t, pool, fmt.Sprint("late", i), "x")
		wake()
		pgtest.Eventually(t, "it is published", func() bool { return published.messages.Load() > already })
	}

	stop()
	sessionsEnd(t, pool)

	return entriesPassed(t, pool) - before
}

// entriesPassed returns how many rows and index entries of the outbox have been read.
func entriesPassed(t *testing.T, pool *pgxpool.Pool) int64 {
	t.Helper()

	return pgtest.Value[int64](t, pool, `SELECT idx_tup_read + (SELECT seq_tup_read FROM pg_stat_user_tables WHERE relname = 'outbox')
		FROM pg_stat_user_indexes WHERE indexrelname = 'outbox_ready'`)
}

// sessionsEnd waits until the relays' sessions have ended, which then report their
// statistics.
func sessionsEnd(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	pgtest.Eventually(t, "the relay's sessions have ended", func() bool {
		return pgtest.Value[int](t, pool, `SELECT count(*)::int FROM pg_stat_activity WHERE datname = current_database() AND starts_with(application_name, $1)`, outbox.SessionName) == 0
	})
}
