package postgres

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// session decides which connections the service works with and how they are set up.
// It applies to all connections: those of the pool, the relays and commands.
type session struct {
	// settings are the parameters of each session.
	settings map[string]string
	// probe connects to the same server without these checks.
	probe *pgconn.Config

	// mu serializes checking for a pooler. dedicated is true once sessions are known not
	// to be shared.
	mu        sync.Mutex
	dedicated bool
}

// settings override what the server, the database or the role prescribe, as pg_dump does.
// A parameter in postgres.url overrides them in turn.
var settings = map[string]string{
	"timezone":  "UTC",
	"datestyle": "ISO",
	// InTx sets the level of a transaction. Single statements rely on this setting.
	"default_transaction_isolation": "read committed",
	// The service bounds its own statements, waits and transactions. A limit meant for
	// people would repeatedly abort long work, such as a migration.
	"statement_timeout":    "0",
	"lock_timeout":         "0",
	"idle_session_timeout": "0",
	"transaction_timeout":  "0", // since Postgres 17
	// A session that hangs inside a transaction holds row locks and keeps vacuum from
	// reclaiming space. Let the server end it.
	"idle_in_transaction_session_timeout": "60s",
	// A message is acknowledged after its commit, so the commit must survive a crash.
	// Levels above off are left unchanged.
	synchronousCommit: "on",
	// Statements look rows up by key. A plan made while a table was small would read the
	// whole table for each key, and would stay in use until the next ANALYZE, however much
	// the table had grown. Statements that no index serves still read the whole table.
	// Before Postgres 18, their cost estimates are so high that JIT would compile them.
	"enable_seqscan": "off",
	"jit":            "off",
	// Plan each statement once. Plans do not depend on the values, but the estimated number
	// of elements of an array does, so Postgres would plan most statements each time, which
	// costs more than running them on a few rows.
	"plan_cache_mode": "force_generic_plan",
}

const synchronousCommit = "synchronous_commit"

// startup lists the parameters that are sent when connecting. PgBouncer knows these and
// refuses a connection with any other, so the others are set later.
var startup = []string{"application_name", "client_encoding", "options", "replication"}

// newSession makes the connections of a pool follow the rules of this package.
func newSession(cfg *pgxpool.Config) {
	s := configure(cfg.ConnConfig)
	cfg.ConnConfig.ValidateConnect = s.begin

	cfg.PrepareConn = func(_ context.Context, conn *pgx.Conn) (bool, error) { return !becameReadOnly(conn.PgConn()), nil }
	cfg.PingTimeout = pongTimeout
}

// configure makes connections follow the rules of this package, except for what is done
// once they are open.
func configure(conn *pgx.ConnConfig) *session {
	s := &session{settings: maps.Clone(settings)}

	for name, value := range conn.RuntimeParams {
		if !slices.Contains(startup, name) {
			s.settings[strings.ToLower(name)] = value
			delete(conn.RuntimeParams, name)
		}
	}

	conn.RuntimeParams["application_name"] = "millrace"

	conn.OnPgError = closeOn(conn.OnPgError)

	if conn.ConnectTimeout == 0 {
		conn.ConnectTimeout = connectTimeout
	}

	conn.DialFunc = dialer.DialContext

	s.probe = conn.Config.Copy()
	s.probe.ValidateConnect = pgconn.ValidateConnectTargetSessionAttrsReadWrite

	return s
}

// connectTimeout bounds connecting to a host, unless postgres.url has connect_timeout.
// Without it, connections to a host that has disappeared would fill the pool for
// minutes.
const connectTimeout = 10 * time.Second

// dialer notices within half a minute that a host has disappeared, even during
// statements that have no timeout of their own.
var dialer = net.Dialer{
	KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3},
	Control:         abandonAfter(30 * time.Second),
}

// pongTimeout bounds the check of a connection that has been idle for a second.
const pongTimeout = 2 * time.Second

// readOnlyTransaction is the SQLSTATE of a write to a server that accepts none.
const readOnlyTransaction = "25006"

// closeOn closes a connection whose server accepts no writes: the next connection may
// reach the new primary.
func closeOn(fatal pgconn.PgErrorHandler) pgconn.PgErrorHandler {
	return func(conn *pgconn.PgConn, err *pgconn.PgError) bool {
		return err.Code != readOnlyTransaction && fatal(conn, err)
	}
}

// reportsReadOnly reports whether the server has reported that it accepts no writes.
// Postgres sends these two parameters with the response to any statement once they have
// changed.
func reportsReadOnly(conn *pgconn.PgConn) bool {
	return conn.ParameterStatus("in_hot_standby") == "on" || conn.ParameterStatus(defaultReadOnly) == "on"
}

// staleReport marks a connection whose reports come from a pooler's memory.
const staleReport = "millrace: stale report"

func becameReadOnly(conn *pgconn.PgConn) bool {
	return conn.CustomData()[staleReport] == nil && reportsReadOnly(conn)
}

// begin refuses a connection that the service cannot work with, and sets the
// parameters of its session. After a refusal, pgx tries the next host if postgres.url
// names several.
func (s *session) begin(ctx context.Context, conn *pgconn.PgConn) error {
	pid, err := s.checkServer(ctx, conn)
	if err != nil {
		return err
	}

	// A pooler gives each client a process ID of its own.
	if pid != fmt.Sprint(conn.PID()) {
		if err := s.checkPooler(ctx, conn, pid); err != nil {
			return err
		}
	}

	if err := set(ctx, conn, s.settings); err != nil {
		return err
	}

	if s.decidesReadOnly() {
		var readOnly string
		if err := queryRow(ctx, conn, `SELECT current_setting('transaction_read_only')`, &readOnly); err != nil {
			return err
		} else if readOnly == "on" {
			return errReadOnly
		}
	}

	if reportsReadOnly(conn) {
		conn.CustomData()[staleReport] = true
	}

	return nil
}

// checkServer refuses a server that accepts no writes, or a database that cannot store
// all messages. It returns the process ID of the server's session.
func (s *session) checkServer(ctx context.Context, conn *pgconn.PgConn) (string, error) {
	var pid, encoding, readOnly, standby string

	err := queryRow(ctx, conn, `
		SELECT pg_backend_pid(), current_setting('server_encoding'), current_setting('transaction_read_only'), pg_is_in_recovery()`,
		&pid, &encoding, &readOnly, &standby)

	switch {
	case err != nil:
		return "", err
	case standby == "t":
		return "", errors.New("the server is a standby, which takes no writes: postgres.url must point to the primary")
	case readOnly == "on" && !s.decidesReadOnly():
		return "", errReadOnly
	case encoding != "UTF8":
		return "", &SetupError{fmt.Sprintf("the database has the encoding %s, but messages are UTF-8: create one with ENCODING 'UTF8' TEMPLATE template0", encoding)}
	}

	return pid, nil
}

// decidesReadOnly reports whether postgres.url overrides default_transaction_read_only.
func (s *session) decidesReadOnly() bool {
	_, decides := s.settings[defaultReadOnly]

	return decides
}

// defaultReadOnly is the parameter that makes transactions read-only.
const defaultReadOnly = "default_transaction_read_only"

var errReadOnly = errors.New("the server takes no writes: default_transaction_read_only is on in its configuration, the database, the role or postgres.url")

// set sets parameters of a session.
func set(ctx context.Context, conn *pgconn.PgConn, settings map[string]string) error {
	if len(settings) == 0 {
		return nil
	}

	if _, err := conn.Exec(ctx, assignment(settings, false)).ReadAll(); err != nil {
		return fmt.Errorf("setting the session's parameters: %w", err)
	}

	return nil
}

// assignment returns the statement that sets parameters: only for the transaction if
// local is true.
func assignment(settings map[string]string, local bool) string {
	// transaction_timeout was added in Postgres 17, so skip it on older servers. For any
	// other unknown name, the server returns an error.
	return fmt.Sprintf(`
		SELECT set_config(name, CASE WHEN name = '%[1]s' AND value = 'on' AND current_setting(name) <> 'off' THEN current_setting(name) ELSE value END, %[3]t)
		FROM (VALUES %[2]s) AS s (name, value)
		WHERE name <> 'transaction_timeout' OR current_setting(name, true) IS NOT NULL`, synchronousCommit, values(settings), local)
}

// values returns settings as a list of rows, in the order of their names.
func values(settings map[string]string) string {
	rows := make([]string, 0, len(settings))

	for _, name := range slices.Sorted(maps.Keys(settings)) {
		rows = append(rows, fmt.Sprintf("(%s, %s)", quote(name), quote(settings[name])))
	}

	return strings.Join(rows, ", ")
}

// quote returns s as an SQL string, whatever standard_conforming_strings is.
func quote(s string) string {
	return `E'` + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(s) + `'`
}

// queryRow reads one row of strings with the simple protocol, which all poolers support.
func queryRow(ctx context.Context, conn *pgconn.PgConn, sql string, values ...*string) error {
	results, err := conn.Exec(ctx, sql).ReadAll()
	if err != nil {
		return err
	}

	row := results[len(results)-1].Rows[0]
	for i, value := range values {
		*value = string(row[i])
	}

	return nil
}

// Connect opens a connection outside the pool with additional settings.
func Connect(ctx context.Context, pool *pgxpool.Pool, name string, settings map[string]string) (*pgx.Conn, error) {
	cfg := pool.Config().ConnConfig.Copy()
	cfg.RuntimeParams["application_name"] = name

	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, err
	}

	if err := errors.Join(registerTypes(ctx, conn), set(ctx, conn.PgConn(), settings)); err != nil {
		_ = conn.Close(ctx)

		return nil, err
	}

	return conn, nil
}

// SetupError reports that the service cannot work with the database as it is set up.
// Waiting does not help.
type SetupError struct{ Problem string }

func (e *SetupError) Error() string { return e.Problem }

var errPooled = &SetupError{"postgres.url points to a connection pooler that gives one session to several clients " +
	"(PgBouncer with pool_mode = transaction or statement). Locks and settings do not last there, and nothing would be published. " +
	"Use pool_mode = session for this database, or the server's own address, or set postgres.direct_url to that address"}

// Limits of checkPooler. PgBouncer may run as several processes with a pool each, so a
// single connection proves little.
const (
	poolerProbes  = 4
	poolerTimeout = 2 * time.Second
)

// checkPooler returns an error if a pooler gives the session of conn, whose process ID is
// pid, to other clients. It leaves nothing behind in any session.
func (s *session) checkPooler(ctx context.Context, conn *pgconn.PgConn, pid string) error {
	s.mu.Lock()
	defer s.mu.Unlock()

	for probe := 0; probe < poolerProbes && !s.dedicated; probe++ {
		shared, err := s.isShared(ctx, conn, pid)

		switch {
		case shared:
			return errPooled
		case err != nil:
			return nil // all sessions of the pooler are in use: the next connection checks again
		}
	}

	s.dedicated = true

	return nil
}

// isShared connects once more and reports whether conn's session moves between the two
// clients. With a pooler that assigns sessions to transactions, the second client gets
// the session that the first is not using, or the first gets another session while the
// second is in a transaction.
func (s *session) isShared(ctx context.Context, conn *pgconn.PgConn, pid string) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, poolerTimeout)
	defer cancel()

	second, err := pgconn.ConnectConfig(ctx, s.probe)
	if err != nil {
		return false, err
	}

	defer func() {
		_, _ = second.Exec(ctx, `ROLLBACK`).ReadAll()
		_ = second.Close(ctx)
	}()

	var theirs, ours string
	if err := queryRow(ctx, second, `SELECT pg_backend_pid()`, &theirs); err != nil || theirs == pid {
		return theirs == pid, err
	}

	if err := queryRow(ctx, second, `BEGIN; SELECT pg_backend_pid()`, &theirs); err != nil {
		_, refused := errors.AsType[*pgconn.PgError](err) // no transactions: statements are pooled

		return refused, err
	}

	err = queryRow(ctx, conn, `SELECT pg_backend_pid()`, &ours)

	return err == nil && (ours != pid || theirs == pid), err
}
