package consumer_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/millracehq/millrace/internal/engine/breaker"
	"github.com/millracehq/millrace/internal/engine/broker"
	"github.com/millracehq/millrace/internal/engine/consumer"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/failed"
	"github.com/millracehq/millrace/internal/engine/outbox"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// note is a payload whose handler inserts a row.
type note struct {
	ID   string `json:"id"`
	Text string `json:"text"`
}

func (note) Topic() string { return "notes" }
func (n note) Key() string { return n.ID }

func (n note) Validate() error {
	switch n.Text {
	case "":
		return errors.New("text: is missing")
	case "panics in Validate":
		panic("it panics")
	default:
		return nil
	}
}

// rig is a running router on the embedded broker.
type rig struct {
	t      *testing.T
	pool   *pgxpool.Pool
	failed *failed.Store
	router *consumer.Router
	needs  *breaker.Set
	cancel context.CancelFunc
	done   chan error
}

// start runs a router with the routes that register adds.
func start(t *testing.T, pool *pgxpool.Pool, register func(*consumer.Router), changes ...func(*consumer.Config)) *rig {
	t.Helper()

	logger, registry := pgtest.Logger(t), prometheus.NewRegistry()
	failures := failed.NewStore(failed.DefaultConfig(), pool)
	relay := outbox.NewRelay(outbox.DefaultConfig(), pool, logger, registry)
	cfg := consumer.DefaultConfig()
	cfg.RetryInterval, cfg.ParkAttempts = time.Millisecond, 0

	for _, change := range changes {
		change(&cfg)
	}

	needs := breaker.NewSet(logger, registry)

	router, err := consumer.NewRouter(cfg, pool, failures, needs, relay, nil, logger, registry)
	if err != nil {
		t.Fatal(err)
	}

	register(router)

	conn, err := broker.New(broker.DefaultConfig(), logger)
	if err != nil {
		t.Fatal(err)
	}

	ctx, cancel := context.WithCancel(context.Background())
	relaying, stopRelay := context.WithCancel(context.Background())
	r := &rig{t: t, pool: pool, failed: failures, router: router, needs: needs, cancel: cancel, done: make(chan error, 1)}
	started := make(chan struct{})

	go func() {
		var relayed sync.WaitGroup

		err := router.Run(ctx, []consumer.Source{
			&source{Conn: conn, routes: router.Routes(), subscribed: func() {
				relayed.Go(func() {
					relay.Run(relaying, outbox.Target{Publisher: conn.Publisher(), Lanes: conn.Lanes(), Run: conn.Run(), Suspended: router.SuspendedTopics})
				})
			}},
		}, func() { close(started) })

		stopRelay()
		relayed.Wait()

		r.done <- errors.Join(err, conn.Close())
	}()

	<-started
	t.Cleanup(r.stop)

	return r
}

// source adapts a broker to the router.
type source struct {
	*broker.Conn

	routes     []*consumer.Route
	subscribed func()
}

func (s *source) Connect(ctx context.Context) error {
	var topics []broker.Topic
	for _, route := range s.routes {
		topics = append(topics, broker.Topic{Name: route.Topic, Consumed: true})
	}

	return s.Conn.Connect(ctx, topics)
}

func (*source) Has(string) bool { return true }

func (s *source) Subscribed() { s.subscribed() }

// stop drains the router. It is idempotent.
func (r *rig) stop() {
	r.cancel()

	if err, ok := <-r.done; ok {
		close(r.done)

		if err != nil {
			r.t.Errorf("stopping: %v", err)
		}
	}
}

func (r *rig) send(messages ...event.Message) {
	r.t.Helper()

	err := postgres.InTx(context.Background(), r.pool, func(tx pgx.Tx) error {
		return outbox.AppendMessages(context.Background(), tx, messages)
	})
	if err != nil {
		r.t.Fatal(err)
	}

	if _, err := r.pool.Exec(context.Background(), "NOTIFY "+outbox.Channel); err != nil {
		r.t.Fatal(err)
	}
}

func message(id, text string) event.Message {
	return event.Message{
		ID: event.NewID(), Topic: "notes", Key: id, Payload: fmt.Appendf(nil, `{"id":%q,"text":%q}`, id, text),
		Headers: event.Headers{"from": "test", "binary": "\xff\x00"},
	}
}

// settle waits until all messages have been applied or stopped.
func (r *rig) settle() {
	r.t.Helper()
	pgtest.Eventually(r.t, "nothing is left to publish or retry", func() bool {
		var left int

		err := r.pool.QueryRow(context.Background(), `SELECT (SELECT count(*) FROM outbox) + (SELECT count(*) FROM failed_keys WHERE due_at IS NOT NULL)`).Scan(&left)

		return err == nil && left == 0 // the test may have closed the connection
	})
}

func (r *rig) texts(id string) string {
	return pgtest.Value[string](r.t, r.pool, `SELECT COALESCE(string_agg(text, ' ' ORDER BY n), '') FROM notes WHERE id = $1`, id)
}

func (r *rig) stopped() []failed.Entry {
	r.t.Helper()

	entries, err := r.failed.List(context.Background(), failed.Filter{State: failed.Stopped}, 1000)
	if err != nil {
		r.t.Fatal(err)
	}

	return entries
}

func newPool(t *testing.T) *pgxpool.Pool {
	t.Helper()

	pool := pgtest.New(t)
	if _, err := pool.Exec(t.Context(), `CREATE TABLE notes (n bigint GENERATED ALWAYS AS IDENTITY, id text, text text)`); err != nil {
		t.Fatal(err)
	}

	return pool
}

func write(ctx context.Context, tx pgx.Tx, e event.Event[note]) ([]event.Outgoing, error) {
	_, err := tx.Exec(ctx, `INSERT INTO notes (id, text) VALUES ($1, $2)`, e.Payload.ID, e.Payload.Text)

	return nil, err
}

func TestMessagesAreAppliedOnceAndInOrderPerKey(t *testing.T) {
	t.Parallel()

	r := start(t, newPool(t), func(router *consumer.Router) { consumer.On(router, "writer", write) })

	var want []string

	for i := range 20 {
		text := fmt.Sprint(i)
		want = append(want, text)
		a, b := message("a", text), message("b", text)
		r.send(a, b, a) // the third is a redelivery
	}

	r.settle()

	for _, id := range []string{"a", "b"} {
		if got := r.texts(id); got != strings.Join(want, " ") {
			t.Errorf("%s: got %s", id, got)
		}
	}
}

// badNote is a message that writeOrFail cannot apply, with the reason.
type badNote struct {
	event.Message

	reason event.Reason
}

func badNotes() []badNote {
	return []badNote{
		{message("x", "fails"), event.ReasonFailed},
		{message("y", "panics"), event.ReasonPanicked},
		{message("z", "division"), event.ReasonFailed},
		{event.Message{ID: event.NewID(), Topic: "notes", Key: "w", Payload: []byte("\x00\xff nonsense"), Headers: event.Headers{"binary": "\xff\x00"}}, event.ReasonMalformed},
		{event.Message{ID: event.NewID(), Topic: "notes", Key: "v", Payload: []byte(`{"id":"v"}`)}, event.ReasonInvalid},
		{event.Message{ID: event.NewID(), Topic: "notes", Key: "of another system", Payload: []byte(`{"id":"u","text":1}`)}, event.ReasonMalformed},
		{event.Message{ID: event.NewID(), Topic: "notes", Key: "t", Payload: []byte(`{"id":"t","text":"panics in Validate"}`)}, event.ReasonPanicked},
	}
}

// writeOrFail writes notes, unless a note's text names a failure.
func writeOrFail(ctx context.Context, tx pgx.Tx, events []event.Event[note]) ([]event.Outgoing, error) {
	for _, e := range events {
		switch e.Payload.Text {
		case "fails":
			return nil, errors.New("it always fails")
		case "panics":
			panic("it panics")
		case "division":
			_, err := tx.Exec(ctx, `SELECT 1 / 0`)

			return nil, err
		}

		if _, err := write(ctx, tx, e); err != nil {
			return nil, err
		}
	}

	return nil, nil
}

func TestABadMessageDoesNotFailOthersInItsBatch(t *testing.T) {
	t.Parallel()

	r := start(t, newPool(t), func(router *consumer.Router) { consumer.OnBatch(router, "writer", writeOrFail) })

	var batch []event.Message
	for i := range 30 {
		batch = append(batch, message(fmt.Sprint("good", i), "good"))
	}

	bad := badNotes()
	for _, b := range bad {
		batch = append(batch, b.Message)
	}

	r.send(batch...)
	r.settle()

	if n := pgtest.Value[int](t, r.pool, `SELECT count(*)::int FROM notes`); n != 30 {
		t.Errorf("%d good messages were applied, expected 30", n)
	}

	stopped := map[uuid.UUID]failed.Entry{}
	for _, e := range r.stopped() {
		stopped[e.MessageID] = e
	}

	for i, b := range bad {
		if got := stopped[b.ID].Reason; got != b.reason {
			t.Errorf("message %d is stopped for %q, expected %q", i, got, b.reason)
		}
	}

	if e := stopped[bad[3].ID]; string(e.Payload) != string(bad[3].Payload) || e.Headers["binary"] != "\xff\x00" || e.Key != "w" {
		t.Errorf("the entry differs from the message: %+v", e)
	}

	// The key is read even from a malformed payload, if its field is readable.
	if e := stopped[bad[5].ID]; e.Key != "u" {
		t.Errorf("the entry has key %q, expected the key in its payload", e.Key)
	}
}

func TestATransientFailureIsNotStopped(t *testing.T) {
	t.Parallel()

	var attempts atomic.Int32

	r := start(t, newPool(t), func(router *consumer.Router) {
		consumer.On(router, "writer", func(ctx context.Context, tx pgx.Tx, e event.Event[note]) ([]event.Outgoing, error) {
			if attempts.Add(1) < 3 {
				return nil, errors.New("not yet")
			}

			return write(ctx, tx, e)
		})
	})
	r.send(message("a", "1"))
	r.settle()

	if got := r.texts("a"); got != "1" || len(r.stopped()) != 0 {
		t.Errorf("got %q and %v", got, r.stopped())
	}
}

func TestRejectionsAreNotRetried(t *testing.T) {
	t.Parallel()

	var attempts atomic.Int32

	r := start(t, newPool(t), func(router *consumer.Router) {
		consumer.On(router, "writer", func(context.Context, pgx.Tx, event.Event[note]) ([]event.Outgoing, error) {
			attempts.Add(1)

			return nil, event.Reject(errors.New("text: is not wanted"))
		})
	})
	r.send(message("a", "1"))
	r.settle()

	if entries := r.stopped(); attempts.Load() != 1 || len(entries) != 1 || entries[0].Reason != event.ReasonRefused || entries[0].Error != "text: is not wanted" {
		t.Errorf("%d attempts, %+v", attempts.Load(), entries)
	}
}

func TestTheSameIDWithAnotherBodyIsStopped(t *testing.T) {
	t.Parallel()

	r := start(t, newPool(t), func(router *consumer.Router) { consumer.On(router, "writer", write) })
	first, second := message("a", "first"), message("a", "second")
	second.ID = first.ID
	r.send(first)
	r.settle()
	r.send(second, first)
	r.settle()

	if entries := r.stopped(); r.texts("a") != "first" || len(entries) != 1 || entries[0].Reason != event.ReasonConflict {
		t.Errorf("applied %q, stopped %+v", r.texts("a"), entries)
	}
}

func TestPostgresFailuresStopNoMessage(t *testing.T) {
	t.Parallel()

	// Kill the handler's own connection mid-transaction.
	var attempts atomic.Int32

	r := start(t, newPool(t), func(router *consumer.Router) {
		consumer.On(router, "writer", func(ctx context.Context, tx pgx.Tx, e event.Event[note]) ([]event.Outgoing, error) {
			if attempts.Add(1) <= 5 { // more often than a handler error is retried
				_, err := tx.Exec(ctx, `SELECT pg_terminate_backend(pg_backend_pid())`)

				return nil, err
			}

			return write(ctx, tx, e)
		})
	})
	r.send(message("a", "1"))
	r.settle()
	pgtest.KillBackends(t, r.pool)
	r.send(message("a", "2"))
	r.settle()

	if got := r.texts("a"); got != "1 2" || len(r.stopped()) != 0 {
		t.Errorf("got %q, stopped %+v", got, r.stopped())
	}
}

func TestDrainFinishesMessagesInFlight(t *testing.T) {
	t.Parallel()

	entered, leave := make(chan struct{}), make(chan struct{})

	r := start(t, newPool(t), func(router *consumer.Router) {
		consumer.On(router, "writer", func(ctx context.Context, tx pgx.Tx, e event.Event[note]) ([]event.Outgoing, error) {
			close(entered)
			<-leave

			return write(ctx, tx, e)
		})
	})
	r.send(message("a", "1"))
	<-entered
	r.cancel()
	close(leave)
	r.stop()

	if got := r.texts("a"); got != "1" {
		t.Errorf("got %q", got)
	}

	if n := pgtest.Value[int](t, r.pool, `SELECT count(*)::int FROM outbox`); n != 0 {
		t.Errorf("%d messages are left in the outbox after being applied", n)
	}
}

func TestAnEffectIsNotRepeatedForAnAppliedMessage(t *testing.T) {
	t.Parallel()

	var performed atomic.Int32

	r := start(t, newPool(t), func(router *consumer.Router) {
		consumer.OnEffect(router, "writer", consumer.Effect[note, string]{
			Admit: func(_ context.Context, _ postgres.Querier, events []event.Event[note]) ([]error, error) {
				verdicts := make([]error, len(events))

				for i, e := range events {
					switch e.Payload.Text {
					case "skip":
						verdicts[i] = event.ErrSkip
					case "refuse":
						verdicts[i] = event.Reject(errors.New("text: is refused"))
					}
				}

				return verdicts, nil
			},
			Perform: func(_ context.Context, e event.Event[note]) (string, error) {
				if performed.Add(1) == 1 {
					return "", errors.New("the result of the first call is lost")
				}

				return "did " + e.Payload.Text, nil
			},
			Record: func(ctx context.Context, tx pgx.Tx, done []event.Effected[note, string]) ([]event.Outgoing, error) {
				for _, d := range done {
					text := "nothing"
					if d.Result != nil {
						text = *d.Result
					}

					if _, err := tx.Exec(ctx, `INSERT INTO notes (id, text) VALUES ($1, $2)`, d.Payload.ID, text); err != nil {
						return nil, err
					}
				}

				return nil, nil
			},
		})
	})
	first := message("a", "work")
	r.send(first)
	r.settle()
	r.send(first, message("b", "skip"), message("c", "refuse"))
	r.settle()

	if got := r.texts("a") + "|" + r.texts("b") + "|" + r.texts("c"); got != "did work|nothing|" {
		t.Errorf("recorded %s", got)
	}

	if performed.Load() != 2 || len(r.stopped()) != 1 {
		t.Errorf("performed %d times, expected 2; stopped %+v", performed.Load(), r.stopped())
	}
}

func TestAMessageWhoseFateCannotBeStoredIsNotTriedInALoop(t *testing.T) {
	t.Parallel()

	pool := newPool(t)
	for _, sql := range []string{
		`CREATE SEQUENCE attempts`,
		`CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM nextval('attempts'); RAISE 'refused'; END $$`,
		`CREATE TRIGGER refuse BEFORE INSERT ON failed_messages FOR EACH ROW EXECUTE FUNCTION refuse()`,
	} {
		if _, err := pool.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}

	r := start(t, pool, func(router *consumer.Router) { consumer.On(router, "writer", write) })
	r.send(event.Message{ID: event.NewID(), Topic: "notes", Key: "a", Payload: []byte("nonsense")})

	attempted := func(n int64) time.Time {
		pgtest.Eventually(t, fmt.Sprint("attempt ", n), func() bool {
			return pgtest.Value[int64](t, pool, `SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM attempts`) >= n
		})

		return time.Now()
	}

	if first, second := attempted(1), attempted(2); second.Sub(first) < time.Second {
		t.Errorf("the second attempt followed after %s, expected more than 2 s", second.Sub(first))
	}
}
