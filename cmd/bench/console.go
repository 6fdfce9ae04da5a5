package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"regexp"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millracehq/millrace"
	"github.com/millracehq/millrace/internal/engine/broker"
)

// Sizes of the database in which the console is measured, and what a screen may take.
const (
	consoleOrders   = 1_000_000
	consoleProducts = 500
	consoleFailures = 10_000
	consoleUsers    = 1000

	screenBytes = 100_000
	screenTime  = 100 * time.Millisecond
)

// measureConsole prints the size and the time of each screen of the console in a database
// with many orders and failures. It returns an error if a screen takes too much.
func measureConsole(ctx context.Context) error {
	server, err := pgxpool.New(ctx, os.Getenv("MILLRACE_TEST_DATABASE_URL"))
	if err != nil {
		return err
	}
	defer server.Close()

	l := &lab{server: server, logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))}

	s, err := l.newSite(ctx, broker.Embedded)
	if err != nil {
		return err
	}
	defer s.close()

	fmt.Fprintf(os.Stderr, "generating %d orders and %d failures, which takes some minutes\n", consoleOrders, consoleFailures)

	if err := s.supply(ctx, consoleProducts); err != nil {
		return err
	}

	if err := s.history(ctx, consoleOrders, consoleProducts); err != nil {
		return err
	}

	ids := make([]string, consoleUsers)
	for i := range ids {
		ids[i] = known(i)
	}

	if err := createUsers(ctx, s, ids); err != nil {
		return err
	}

	if err := s.failures(ctx, consoleFailures); err != nil {
		return err
	}

	// The service must not work while it is measured.
	if _, err := s.pool.Exec(ctx, `UPDATE outbox SET available_at = now() + interval '1 day'`); err != nil {
		return err
	}

	return s.measureScreens(ctx)
}

// measureScreens runs the service and opens its screens.
func (s *site) measureScreens(ctx context.Context) error {
	cfg := s.cfg
	cfg.HTTP.Addr, cfg.Health.Addr = "127.0.0.1:0", "127.0.0.1:0"

	service, release, err := millrace.New(cfg, s.lab.logger)
	if err != nil {
		return err
	}
	defer release()

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	ready, done := make(chan struct{}), make(chan error, 1)

	go func() { done <- service.Run(ctx, func() { close(ready) }) }()

	select {
	case <-ready:
	case err := <-done:
		return err
	}

	base := "http://" + service.HTTPAddr()
	if err = waitForUsers(ctx, base); err == nil {
		err = measureAt(base)
	}

	cancel()

	return errors.Join(err, <-done)
}

// Patterns of links to screens.
var (
	navigation = regexp.MustCompile(`<li><a href="(/console/[^"]+)"`)
	groupLink  = regexp.MustCompile(`href="(/console/failures\?group=\w+)"`)
	queueLink  = regexp.MustCompile(`href="(/console/waiting/\d+)"`)
)

// screens returns the paths of all screens of the console at an address.
func screens(base string) (paths []string, err error) {
	for _, links := range []struct {
		page    string
		pattern *regexp.Regexp
		most    int
	}{{"/console/now", navigation, -1}, {"/console/failures", groupLink, 1}, {"/console/waiting", queueLink, 1}} {
		html, _, err := fetch(base + links.page)
		if err != nil {
			return nil, err
		}

		matches := links.pattern.FindAllStringSubmatch(string(html), links.most)
		if len(matches) == 0 {
			return nil, fmt.Errorf("%s has no link like %s", links.page, links.pattern)
		}

		for _, match := range matches {
			paths = append(paths, match[1])
		}
	}

	return append(paths,
		"/console/failures?state=all", "/console/failures?key=failed-7", "/console/failures?text=failed-77", "/console/failures?older=5000", "/console/failures/5000",
		"/console/failures/edit", "/console/failures/replay", "/console/failures/discard",
		"/console/orders/order-777777", "/console/users/"+known(7), "/console/products/sku_7",
		"/console/conversations?id=order-777777", "/console/conversations?id=failed-7",
		"/console/consumers/fulfilment.place", "/console/docs/asyncapi/orders.created", "/console/docs/openapi"), nil
}

// waitForUsers waits until the projection of users has read all events.
func waitForUsers(ctx context.Context, base string) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()

	for {
		html, _, err := fetch(base + "/console/users")
		if err != nil || bytes.Contains(html, []byte(`href="/console/users/`)) {
			return err
		}

		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// measureAt opens each screen.
func measureAt(base string) error {
	paths, err := screens(base)
	if err != nil {
		return err
	}

	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "SCREEN\tBYTES\tTIME\tFIRST TIME\t")

	over := 0

	for _, path := range paths {
		size, first, median, err := measureScreen(base + path)
		if err != nil {
			return err
		}

		verdict := ""
		if size > screenBytes || median > screenTime {
			verdict = "over the budget"
			over++
		}

		fmt.Fprintf(table, "%s\t%d\t%.1f ms\t%.1f ms\t%s\n", path, size, ms(median), ms(first), verdict)
	}

	if err := table.Flush(); err != nil {
		return err
	}

	if over > 0 {
		return fmt.Errorf("%d screens are over the budget of %d bytes and %v", over, screenBytes, screenTime)
	}

	return nil
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// screenRuns is how often a screen is opened.
const screenRuns = 11

// measureScreen returns the size of a screen, the time that it took at first, and the
// median.
func measureScreen(url string) (size int, first, median time.Duration, err error) {
	var times []time.Duration

	for range screenRuns {
		body, took, err := fetch(url)
		if err != nil {
			return 0, 0, 0, err
		}

		size, times = len(body), append(times, took)
	}

	first = times[0]
	slices.Sort(times)

	return size, first, times[len(times)/2], nil
}

func fetch(url string) (body []byte, took time.Duration, err error) {
	started := time.Now()

	response, err := http.Get(url) //nolint:gosec,noctx // it is our own service
	if err != nil {
		return nil, 0, err
	}
	defer response.Body.Close()

	if body, err = io.ReadAll(response.Body); err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", url, response.Status)
	}

	return body, time.Since(started), err
}

// failures inserts n stopped messages of n/10 keys, as three bugs leave them, and as many
// that wait for users who are unknown; and n actions of operators.
func (s *site) failures(ctx context.Context, n int) error {
	for _, statement := range []string{
		`INSERT INTO failed_keys (consumer, key) SELECT 'fulfilment.place', 'failed-' || n FROM generate_series(0, $1::int / 10 - 1) AS n`,
		`INSERT INTO failed_messages (key, state, failed_key, consumer, topic, message_id, fingerprint, origin, headers, payload,
		        first_at, reason, last_at, error, tried_at, cause, group_id, attempts, deliveries, first_release, last_release)
		 SELECT key, 'stopped', key, 'fulfilment.place', 'orders.created', ` + idAt("at", "failed") + `, n, 'embedded:orders.created', '{}',
		        convert_to('{"order":{"id":"' || key || '","product_id":"sku_1","quantity":1,"total_amount":9.99}}', 'UTF8'),
		        at, 'failure', at, error, at, error, substr(md5(error), 1, 12), 4, 1, '1.0.0', '1.0.1'
		 FROM (SELECT n, 'failed-' || n % ($1::int / 10) AS key, now() - n * interval '1 second' AS at,
		              'reserving stock: ' || (ARRAY['division by zero', 'invalid memory address or nil pointer dereference', 'there is no price'])[1 + n % 3] AS error
		       FROM generate_series(1, $1::int) AS n) AS f
		 ORDER BY n DESC`,
		`INSERT INTO failed_keys (consumer, key, due_at) SELECT 'account.update', 'waiting-' || n, now() + interval '1 day' FROM generate_series(0, $1::int / 10 - 1) AS n`,
		`INSERT INTO failed_messages (key, state, failed_key, consumer, topic, message_id, fingerprint, origin, headers, payload,
		        reason, error, tried_at, cause, group_id, attempts, first_release, last_release)
		 SELECT key, 'waiting', key, 'account.update', 'user.updated', gen_random_uuid(), n, 'embedded:user.updated', '{}',
		        convert_to('{"user_id":"' || key || '","updates":{"name":"Name"}}', 'UTF8'),
		        CASE WHEN first THEN 'early' ELSE '' END, CASE WHEN first THEN error ELSE '' END, CASE WHEN first THEN now() END,
		        CASE WHEN first THEN error ELSE '' END, CASE WHEN first THEN substr(md5(error), 1, 12) ELSE '' END, CASE WHEN first THEN 1 ELSE 0 END, '1.0.1', '1.0.1'
		 FROM (SELECT n, 'waiting-' || n % ($1::int / 10) AS key, n < $1::int / 10 AS first, 'the user does not exist' AS error
		       FROM generate_series(0, $1::int - 1) AS n) AS w
		 ORDER BY n`,
		`INSERT INTO operator_actions (action, entry_id, subject, who, why, acted_at)
		 SELECT 'requeued', n, 'fulfilment.place failed-' || n, 'ada', 'deployed the fix', now() - n * interval '1 minute' FROM generate_series(1, $1::int) AS n`,
		`VACUUM ANALYZE failed_messages, failed_keys, operator_actions`,
	} {
		var args []any
		if statement[:6] == "INSERT" {
			args = append(args, n)
		}

		if _, err := s.pool.Exec(ctx, statement, args...); err != nil {
			return fmt.Errorf("generating failures: %w", err)
		}
	}

	return nil
}
