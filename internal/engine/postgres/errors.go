package postgres

import (
	"errors"
	"io"
	"net"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/puddle/v2"
)

// Dependency is the name of the database as a dependency.
const Dependency = "postgres"

// IsUnavailable reports whether err was caused by the database rather than the
// message: it is unreachable, shutting down, out of resources, timed out, or had to
// abort one of several transactions. Retrying the same work can succeed.
func IsUnavailable(err error) bool {
	// A connection error says nothing about the work.
	if _, ok := errors.AsType[*pgconn.ConnectError](err); ok {
		return true
	}

	if IsContention(err) {
		return true
	}

	if server, ok := errors.AsType[*pgconn.PgError](err); ok {
		return transientState(server.Code)
	}

	var network net.Error

	return errors.As(err, &network) ||
		errors.Is(err, io.EOF) ||
		errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, net.ErrClosed) ||
		errors.Is(err, puddle.ErrClosedPool) ||
		pgconn.Timeout(err) ||
		pgconn.SafeToRetry(err) ||
		errors.Is(err, pgconn.ErrConnClosed)
}

// IsContention reports whether err means that transactions conflicted. The database
// is healthy, and retrying immediately can succeed.
func IsContention(err error) bool {
	if _, ok := errors.AsType[*ContentionError](err); ok {
		return true
	}

	server, ok := errors.AsType[*pgconn.PgError](err)

	// serialization_failure, deadlock_detected, lock_not_available
	return ok && (server.Code == "40001" || server.Code == "40P01" || server.Code == "55P03")
}

// ContentionError is the error of a transaction that a constraint refused because another
// one has changed what it read. It has to read and decide again.
type ContentionError struct{ Err error }

// Error implements error.
func (e *ContentionError) Error() string { return e.Err.Error() }

func (e *ContentionError) Unwrap() error { return e.Err }

// Violates reports whether err means that a row would violate the constraint with this
// name.
func Violates(err error, constraint string) bool {
	server, ok := errors.AsType[*pgconn.PgError](err)

	return ok && server.ConstraintName == constraint
}

// IsDuplicate reports whether err means that a row with the same unique key already
// exists.
func IsDuplicate(err error) bool {
	server, ok := errors.AsType[*pgconn.PgError](err)

	return ok && server.Code == "23505"
}

// IsAway reports whether err means that the server did not answer or does no work at
// all. These are the errors of IsUnavailable, except for a missing privilege for a
// statement.
func IsAway(err error) bool {
	if _, ok := errors.AsType[*pgconn.ConnectError](err); ok {
		return true
	}

	server, answered := errors.AsType[*pgconn.PgError](err)

	return IsUnavailable(err) && (!answered || server.Code != insufficientPrivilege)
}

// insufficientPrivilege is the SQLSTATE of a statement that the role cannot run.
const insufficientPrivilege = "42501"

// Renew closes the pool's connections if err means that the server did not answer: after
// a failover all of them may lead to a host that has disappeared. Those in use are closed
// when they are released.
func Renew(pool *pgxpool.Pool, err error) {
	if _, answered := errors.AsType[*pgconn.PgError](err); !answered {
		pool.Reset()
	}
}

// transientState classifies an SQLSTATE (PostgreSQL manual, appendix A), except for those
// of IsContention.
func transientState(code string) bool {
	switch code {
	case "57014", // query_canceled: statement_timeout or an operator
		readOnlyTransaction,
		"25P03",               // idle_in_transaction_session_timeout
		"25P04",               // transaction_timeout
		insufficientPrivilege: // the role has lost a privilege, whatever the message
		return true
	}

	switch code[:2] {
	case "08", // connection_exception
		"53", // insufficient_resources
		"57", // operator_intervention: shutdown, crash, starting up
		"58": // system_error
		return true
	}

	return false
}
