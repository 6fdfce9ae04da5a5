package crash

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millracehq/millrace/cmd/proof/replica"
	"github.com/millracehq/millrace/cmd/proof/server"
	"github.com/millracehq/millrace/internal/engine/crashpoint"
)

// deadline is the default of how long a run may make no progress before it is at rest. Kafka
// waits ten seconds for a dead member of a group.
const deadline = 90 * time.Second

// target is a point at which a process dies, and how many passes it survives before.
type target struct {
	point crashpoint.Point
	pass  int
}

func (t target) String() string { return string(t.point) + ":" + strconv.Itoa(t.pass) }

// What else may happen to a process than to die at a crash point.
const (
	// Restart drains a process in the middle of the load, and starts another one.
	Restart crashpoint.Point = "restart"
	// Disconnect ends the sessions of a process with Postgres in the middle of the load, a
	// few times.
	Disconnect crashpoint.Point = "disconnect"
	// Second starts another process before the load is sent.
	Second crashpoint.Point = "second process"
)

// Trial is one run: a load, processes that die, and what is wrong in the end.
type Trial struct {
	Broker string
	Points []crashpoint.Point
	// Pass is the pass of the first point at which the process dies. Defaults to one that is
	// late enough that there is something to lose.
	Pass int
	// Patience is how long the run may make no progress. Defaults to 90 seconds.
	Patience time.Duration
	// Reached counts the points that a process reached.
	Reached int
	// Messages counts the messages whose fate was checked: those that were sent and those
	// that followed.
	Messages int
	Wrong    []string
	Took     time.Duration
}

// Name names the points.
func (t Trial) Name() string {
	names := make([]string, len(t.Points))
	for i, p := range t.Points {
		names[i] = string(p)
	}

	return strings.Join(names, " + ")
}

// run is one trial in progress.
type run struct {
	lab    *Lab
	dir    string
	db     *pgxpool.Pool
	fleet  *replica.Fleet
	load   *load
	broker broker
	mail   *mailServer

	targets []target
	// reached counts the targets that were reached, and deaths those at which a process died.
	reached, deaths int
	patience        time.Duration
	// cancelled is true once the cancellations have been sent.
	cancelled bool
	// lost describes what is missing before the run is at rest.
	lost string
}

// Run runs a trial with processes of a program, which die at the points one after the other.
func (l *Lab) Run(ctx context.Context, program string, plan Trial) (t Trial, err error) {
	t = plan
	began := time.Now()

	r := &run{lab: l, load: newLoad(classes, users), patience: cmp.Or(t.Patience, deadline)}

	for i, p := range t.Points {
		pass := 1 // whoever recovers dies as early as possible
		if i == 0 {
			pass = cmp.Or(t.Pass, passOf(p))
		}

		r.targets = append(r.targets, target{p, pass})

		if isExpiry(p) {
			r.load = newLoad(expiring, 0)
		}
	}

	closeRun, err := r.prepare(ctx, program, t.Broker)
	defer closeRun()

	if err == nil {
		err = r.play(ctx)
	}

	t.Reached, t.Took = r.reached, time.Since(began)

	switch {
	case err != nil:
		return t, fmt.Errorf("%s on %s: %w (see %s)", t.Name(), t.Broker, err, r.dir)
	case r.lost != "":
		t.Wrong = []string{"the run did not come to rest: " + r.lost}
	default:
		c := &checker{db: r.db, load: r.load, broker: r.broker, mail: r.mail, deaths: r.deaths}
		if t.Wrong, err = c.check(ctx); err != nil {
			return t, fmt.Errorf("%s on %s: %w", t.Name(), t.Broker, err)
		}
	}

	err = r.db.QueryRow(ctx, `SELECT (SELECT count(*) FROM inbox) + (SELECT count(*) FROM failed_messages) + (SELECT count(*) FROM published_messages)`).Scan(&t.Messages)
	t.Took = time.Since(began)

	return t, err
}

// passOf is the pass of a point at which the process dies: late enough that there is
// something to lose, and early enough that it is reached.
func passOf(p crashpoint.Point) int {
	switch p {
	case crashpoint.Received, crashpoint.Acking, crashpoint.Acked, crashpoint.WindowTracked, crashpoint.WindowFinished,
		crashpoint.RelayPublishing, crashpoint.RelayPublished, crashpoint.RelayConfirmed, crashpoint.RabbitMQSent:
		return 20
	case crashpoint.EffectAdmitted, crashpoint.EffectPerformed, crashpoint.EffectRecorded, crashpoint.Charged, crashpoint.Emailed:
		return 4
	case crashpoint.Claimed, crashpoint.Handled, crashpoint.Committing, crashpoint.Committed, crashpoint.WindowMarked:
		return 3
	default:
		return 1
	}
}

func isExpiry(p crashpoint.Point) bool {
	return strings.HasPrefix(string(p), "expiry.") || p == crashpoint.RelayScheduled
}

func isDrain(p crashpoint.Point) bool { return strings.HasPrefix(string(p), "drain.") }

// prepare creates the database and the topics of the run, and starts the first process.
func (r *run) prepare(ctx context.Context, program, kind string) (closeRun func(), err error) {
	closing := []func(){}
	closeRun = func() {
		for _, fn := range slices.Backward(closing) {
			fn()
		}
	}

	name, address, err := r.lab.place(ctx, kind)
	if err != nil {
		return closeRun, err
	}

	r.dir = filepath.Join(r.lab.dir, name)
	if err = os.Mkdir(r.dir, 0o700); err != nil {
		return closeRun, err
	}

	url := r.lab.postgres.URL(name)
	if r.db, err = pgxpool.New(ctx, url); err != nil {
		return closeRun, err
	}

	closing = append(closing, r.db.Close)

	if r.mail, err = newMailServer(); err != nil {
		return closeRun, err
	}

	closing = append(closing, func() { _ = r.mail.server.Close() })

	log, err := os.Create(r.log())
	if err != nil {
		return closeRun, err
	}

	r.fleet = &replica.Fleet{Program: program, Log: log, Environment: r.environment(kind, name, url, address)}
	closing = append(closing, func() { _ = log.Close() }, r.fleet.KillAll)

	if err = r.begin(ctx); err != nil {
		return closeRun, err
	}

	r.broker, err = open(r.db, kind, name, address)
	if err == nil {
		closing = append(closing, r.broker.close)
	}

	return closeRun, err
}

// begin supplies the products and starts the first processes. When it returns, the topics
// exist.
func (r *run) begin(ctx context.Context) error {
	if err := r.supply(ctx); err != nil {
		return err
	}

	if err := r.launch(); err != nil {
		return err
	}

	if r.next() == Second {
		r.reached++

		if err := r.fleet.Start(ctx, 1); err != nil {
			return err
		}
	}

	return r.fleet.Running[0].Ready(ctx)
}

func open(db *pgxpool.Pool, kind, name, address string) (broker, error) {
	switch kind {
	case server.Kafka:
		return openKafka(address, name+".")
	case server.RabbitMQ:
		return openRabbitMQ(address)
	default:
		return embedded{db}, nil
	}
}

func (r *run) log() string { return filepath.Join(r.dir, "service.log") }

func (r *run) environment(kind, name, url, address string) []string {
	timeout := "1h"
	if len(r.load.histories) == 0 {
		timeout = "2s"
	}

	return append(os.Environ(),
		"DATABASE_URL="+url,
		"MILLRACE_POSTGRES__MIGRATE_ON_START=false",
		"MILLRACE_POSTGRES__MAX_CONNS=8",
		"MILLRACE_BROKER__KIND="+kind,
		"MILLRACE_BROKER__KAFKA__BROKERS="+address,
		"MILLRACE_BROKER__KAFKA__PREFIX="+name+".",
		"MILLRACE_BROKER__KAFKA__GROUP="+name,
		"MILLRACE_BROKER__KAFKA__PARTITIONS=2",
		"MILLRACE_BROKER__RABBITMQ__URL="+address,
		"MILLRACE_OUTBOX__POLL_INTERVAL=100ms",
		"MILLRACE_CONSUMER__AWAIT_TIMEOUT=1h",
		"MILLRACE_CONSUMER__PARK_INTERVAL=100ms",
		"MILLRACE_CONSUMER__PARK_MAX_INTERVAL=200ms",
		"MILLRACE_CONSUMER__PARK_ATTEMPTS=4",
		"MILLRACE_FULFILMENT__PAYMENT_TIMEOUT="+timeout,
		"MILLRACE_PAYMENT__SIMULATED__LEDGER=true",
		"MILLRACE_PAYMENT__SIMULATED__TIMEOUT=100ms",
		"MILLRACE_PAYMENT__SIMULATED__RULES="+r.load.rules(),
		"MILLRACE_NOTIFICATION__EMAIL__HOST=127.0.0.1",
		"MILLRACE_NOTIFICATION__EMAIL__PORT="+strconv.Itoa(r.mail.port),
		"MILLRACE_NOTIFICATION__EMAIL__TLS=none",
		"MILLRACE_NOTIFICATION__EMAIL__FROM=shop@example.com",
	)
}

// supply adds stock, and requests with another amount at the provider for the orders whose
// payments are to stop.
func (r *run) supply(ctx context.Context) error {
	if _, err := r.db.Exec(ctx, `INSERT INTO stock (product_id, supplied, available) VALUES ('apple', 1000, 1000), ('pear', 0, 0)`); err != nil {
		return err
	}

	for id := range r.load.orders() {
		if !strings.HasPrefix(id, "requeued-") && !strings.HasPrefix(id, "expired-") {
			continue
		}

		if _, err := r.db.Exec(ctx, `
			INSERT INTO gateway_ledger (idempotency_key, order_id, attempt, amount, currency) VALUES ('millrace-charge-' || $1 || '-1', $1, 1, 1, 'USD')`, id); err != nil {
			return err
		}
	}

	return nil
}

// launch starts a process that dies at the next target, if any is left.
func (r *run) launch() error {
	before := r.fleet.Environment
	r.fleet.Environment = r.aimed(before)
	_, err := r.fleet.Launch()
	r.fleet.Environment = before

	return err
}

// aimed returns an environment with the next target.
func (r *run) aimed(environment []string) []string {
	switch r.next() {
	case "", Restart, Disconnect, Second:
		return environment
	default:
		return append(slices.Clone(environment), crashpoint.Variable+"="+r.targets[r.reached].String())
	}
}

// next returns the point at which the running process dies, or "".
func (r *run) next() crashpoint.Point {
	if r.reached == len(r.targets) {
		return ""
	}

	return r.targets[r.reached].point
}

// play sends the load, replaces processes that die, and drains the last one at rest.
func (r *run) play(ctx context.Context) error {
	if err := r.broker.publish(ctx, r.load.messages); err != nil {
		return fmt.Errorf("publishing the load: %w", err)
	}

	done, since := 0, time.Now()

	for {
		if err := r.replace(ctx); err != nil {
			return err
		}

		if err := r.operate(ctx); err != nil {
			return err
		}

		missing, err := r.missing(ctx)
		if err != nil {
			return err
		}

		if missing == "" {
			// What is on a topic twice is still in hand.
			behind, err := r.broker.backlog(ctx, false)
			if err != nil {
				return err
			}

			missing = strings.Join(behind, "; ")
		}

		if missing == "" {
			return r.stopAll()
		}

		if now, err := r.progress(ctx); err != nil {
			return err
		} else if now > done {
			done, since = now, time.Now()
		}

		if time.Since(since) > r.patience {
			r.lost = missing

			return nil
		}

		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// progress counts what has been done.
func (r *run) progress(ctx context.Context) (n int, err error) {
	err = r.db.QueryRow(ctx, `
		SELECT (SELECT count(*) FROM inbox) + (SELECT count(*) FROM events) + (SELECT count(*) FROM failed_messages WHERE state <> 'waiting')`).Scan(&n)

	return n + r.reached, err
}

func (r *run) stopAll() (err error) {
	for len(r.fleet.Running) > 0 && err == nil {
		err = r.fleet.Stop(0)
	}

	return err
}

// replace starts a process if the last one died at its point. It drains the process first
// if its point is in the drain and there is something to drain.
func (r *run) replace(ctx context.Context) error {
	switch p := r.next(); {
	case isDrain(p) || p == Restart || p == Disconnect:
		if busy, err := r.busy(ctx); err != nil || !busy {
			return err
		}

		if p == Disconnect {
			return r.disconnect(ctx)
		}

		// It fails if the process kills itself.
		if err := r.fleet.Stop(0); p == Restart {
			r.reached++

			return errors.Join(err, r.launch())
		}
	default:
		select {
		case <-r.fleet.Running[0].Ended():
			r.fleet.Kill(0) // forget it
		default:
			return nil
		}
	}

	if err := r.died(); err != nil {
		return err
	}

	// A new process waits until the leases of the dead one expire, which takes 30 seconds.
	// The run knows that nobody holds them.
	if _, err := r.db.Exec(ctx, `UPDATE failed_keys SET leased_until = clock_timestamp() WHERE leased_until > clock_timestamp()`); err != nil {
		return err
	}

	return r.launch()
}

// disconnect ends the sessions of the service.
func (r *run) disconnect(ctx context.Context) error {
	r.reached++

	for range 5 {
		if _, err := r.db.Exec(ctx, `
			SELECT pg_terminate_backend(pid) FROM pg_stat_activity
			WHERE datname = current_database() AND application_name LIKE 'millrace%'`); err != nil {
			return err
		}

		time.Sleep(50 * time.Millisecond) // until it has connected again
	}

	return nil
}

// busy reports whether some of the load has been applied.
func (r *run) busy(ctx context.Context) (busy bool, err error) {
	err = r.db.QueryRow(ctx, `SELECT count(*) > 10 FROM inbox`).Scan(&busy)

	return busy, err
}

// died checks that a process died at the next target.
func (r *run) died() error {
	log, err := os.ReadFile(r.log())
	if err != nil {
		return err
	}

	if strings.Count(string(log), "crashpoint: killed at ") != r.deaths+1 {
		return errors.New("a process ended, but not at its crash point")
	}

	r.reached++
	r.deaths++

	return nil
}

// stopped are the payments that the provider refused for their amount.
const stopped = `
	SELECT id, key FROM failed_messages WHERE state = 'stopped' AND consumer = 'fulfilment.charge' AND reason = 'conflict' AND key LIKE $1 || '-%'`

// operate does what customers and operators do: it cancels the orders whose charges are
// pending, corrects the provider's record and requeues the payments that stopped, or
// discards them once the order was found unpaid.
func (r *run) operate(ctx context.Context) error {
	if err := r.cancel(ctx); err != nil {
		return err
	}

	if err := r.act(ctx, stopped, "requeued", "requeue"); err != nil {
		return err
	}

	return r.act(ctx, stopped+`
		AND (EXISTS (SELECT FROM outbox WHERE topic = 'orders.expiry.due' AND available_at IS NOT NULL) OR EXISTS (SELECT FROM inbox WHERE consumer = 'fulfilment.expire'))`,
		"expired", "discard")
}

func (r *run) cancel(ctx context.Context) error {
	var charges int

	err := r.db.QueryRow(ctx, `SELECT count(*) FROM gateway_ledger WHERE order_id LIKE 'cancelled-%'`).Scan(&charges)
	if err != nil || r.cancelled || charges < len(r.load.cancellations) || charges == 0 {
		return err
	}

	r.cancelled = true

	return r.broker.publish(ctx, r.load.cancellations)
}

func (r *run) act(ctx context.Context, sql, class, action string) error {
	rows, err := r.db.Query(ctx, sql, class)
	if err != nil {
		return err
	}

	type entry struct {
		ID  int64
		Key string
	}

	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[entry])
	if err != nil || len(list) < r.load.count(class) {
		return err // all at once
	}

	if len(list) == 0 {
		return nil
	}

	args := []string{"failed", action, "--why", "the provider has corrected its record"}

	for _, e := range list {
		if _, err := r.db.Exec(ctx, `DELETE FROM gateway_ledger WHERE order_id = $1`, e.Key); err != nil {
			return err
		}

		args = append(args, strconv.FormatInt(e.ID, 10))
	}

	cmd := exec.CommandContext(ctx, r.fleet.Program, args...)
	cmd.Env = r.fleet.Environment

	if r.next() == crashpoint.FailedRequeuing {
		cmd.Env = r.aimed(cmd.Env)
	}

	out, err := cmd.CombinedOutput()
	if err != nil && strings.Contains(string(out), "crashpoint: killed at ") {
		r.reached++ // the command died, and the service did not

		return nil
	}

	if err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, out)
	}

	return nil
}

func (l *load) count(class string) int {
	for _, c := range l.classes {
		if c.name == class {
			return c.n
		}
	}

	return 0
}

// missing says what is still to be done, or returns "".
func (r *run) missing(ctx context.Context) (string, error) {
	if p := r.next(); p != "" && (isDrain(p) || p == crashpoint.FailedRequeuing || p == Restart || p == Disconnect) {
		return "it has not come to " + string(p), nil
	}

	var outbox, waiting, mails int

	err := r.db.QueryRow(ctx, `
		SELECT (SELECT count(*) FROM outbox), (SELECT count(*) FROM failed_messages WHERE state = 'waiting'), (SELECT count(*) FROM notifications)`).
		Scan(&outbox, &waiting, &mails)

	switch {
	case err != nil:
		return "", err
	case outbox > 0:
		return fmt.Sprintf("%d rows are in the outbox", outbox), nil
	case waiting > 0:
		return fmt.Sprintf("%d messages wait", waiting), nil
	case mails < r.load.mails():
		return fmt.Sprintf("%d of %d e-mails are recorded", mails, r.load.mails()), nil
	}

	got, err := histories(ctx, r.db)
	if err != nil {
		return "", err
	}

	for id, allowed := range r.load.orders() {
		if !slices.Contains(allowed, got[id]) {
			return fmt.Sprintf("order %s has the history %q", id, got[id]), nil
		}
	}

	return r.unknown(ctx)
}

// unknown names a message that is neither applied nor stored as failed, or returns "".
func (r *run) unknown(ctx context.Context) (string, error) {
	all := r.load.all()

	ids := make([]uuid.UUID, len(all))
	for i, o := range all {
		ids[i] = o.id
	}

	var unknown *uuid.UUID

	err := r.db.QueryRow(ctx, `
		SELECT sent FROM unnest($1::uuid[]) AS sent
		WHERE NOT EXISTS (SELECT FROM inbox WHERE message_id = sent) AND NOT EXISTS (SELECT FROM failed_messages WHERE message_id = sent) LIMIT 1`, ids).Scan(&unknown)

	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return r.users(ctx)
	case err != nil:
		return "", err
	}

	for _, o := range all {
		if o.id == *unknown {
			return fmt.Sprintf("%s for %s is neither applied nor stored", o.topic, o.key), nil
		}
	}

	return "", nil
}

// users says whose history is too short, or returns "".
func (r *run) users(ctx context.Context) (missing string, err error) {
	want := r.load.mails()

	var n, wrong int

	err = r.db.QueryRow(ctx, `
		SELECT (SELECT count(*) FROM events WHERE stream LIKE 'user-%'), (SELECT count(*) FROM failed_messages WHERE state = 'stopped')`).Scan(&n, &wrong)

	switch {
	case err != nil:
		return "", err
	case n < want:
		return fmt.Sprintf("users have %d of %d events", n, want), nil
	case wrong < len(r.load.stopped):
		return fmt.Sprintf("%d of %d wrong messages are stopped", wrong, len(r.load.stopped)), nil
	default:
		return "", nil
	}
}
