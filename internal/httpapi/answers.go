package httpapi

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

// answers gives a POST with an Idempotency-Key that is sent again the answer
// that it got, for a day.
//
// Two requests with one key at once exclude each other by an advisory lock, and
// not by an open transaction, which would hold up projections. A process that
// dies in between leaves no answer: the request runs again, which does no harm,
// because an entry on which somebody decided is not acted on again.
type answers struct {
	pool   *pgxpool.Pool
	logger *slog.Logger
	next   http.Handler
	// places bounds how many are at it: each has a connection, and needs a
	// second one, which they would all wait for if they had them all.
	places chan struct{}
}

func newAnswers(pool *pgxpool.Pool, logger *slog.Logger, next http.Handler) answers {
	return answers{pool: pool, logger: logger, next: next, places: make(chan struct{}, max(pool.Config().MaxConns/4, 1))}
}

const (
	idempotencyHeader = "Idempotency-Key"
	maxKey            = 255
	// answerLock is the class of the advisory locks of keys: "mlik" in ASCII.
	answerLock = 0x6d6c696b
)

// kept are the headers of an answer that are given again.
var kept = []string{"Content-Type", "ETag", "Link"}

func (a answers) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	key := r.Header.Get(idempotencyHeader)

	// What is too long the operation itself refuses.
	if r.Method != http.MethodPost || key == "" || len(key) > maxKey {
		a.next.ServeHTTP(w, r)

		return
	}

	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		if _, large := errors.AsType[*http.MaxBytesError](err); large {
			writeProblem(w, http.StatusRequestEntityTooLarge, fmt.Sprintf("the body has more than %d bytes", maxBody))
		} else {
			writeProblem(w, http.StatusBadRequest, "the body cannot be read")
		}

		return
	}

	r.Body = io.NopCloser(bytes.NewReader(body))

	if err := a.once(w, r, event.Text(key), body); err != nil {
		a.logger.Warn("keeping the answer to a request", slog.Any("error", err))
		writeProblem(w, http.StatusServiceUnavailable, "the database cannot be reached, or took too long")
	}
}

// answer is what a request got.
type answer struct {
	Fingerprint []byte
	Status      int
	Headers     map[string]string
	Body        []byte
}

// once answers the request, now or as before. It returns an error when it
// wrote nothing.
func (a answers) once(w http.ResponseWriter, r *http.Request, key string, body []byte) error {
	ctx := r.Context()

	select {
	case a.places <- struct{}{}:
		defer func() { <-a.places }()
	case <-ctx.Done():
		return ctx.Err()
	}

	conn, err := a.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()

	var free bool
	if err := conn.QueryRow(ctx, `SELECT pg_try_advisory_lock($1, hashtext($2))`, answerLock, key).Scan(&free); err != nil {
		return err
	}

	if !free {
		w.Header().Set("Retry-After", "1")
		writeProblem(w, http.StatusConflict, "a request with this Idempotency-Key is being answered")

		return nil
	}

	defer func() {
		unlock, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()

		if _, err := conn.Exec(unlock, `SELECT pg_advisory_unlock($1, hashtext($2))`, answerLock, key); err != nil {
			_ = conn.Conn().Close(unlock) // the lock goes with the connection
		}
	}()

	found, err := lookUp(ctx, conn, key)
	if err != nil {
		return err
	}

	fingerprint := fingerprintOf(r, body)

	switch {
	case found == nil:
		return a.answer(w, r, conn, key, fingerprint)
	case !bytes.Equal(found.Fingerprint, fingerprint):
		writeProblem(w, http.StatusUnprocessableEntity, "this Idempotency-Key was used with another request")
	default:
		w.Header().Set("Idempotency-Replayed", "true")
		found.write(w)
	}

	return nil
}

// fingerprintOf is the same for requests that ask for the same.
func fingerprintOf(r *http.Request, body []byte) []byte {
	sum := sha256.New()
	_, _ = fmt.Fprintf(sum, "%s\x00%s\x00%s\x00", r.Method, r.URL.RequestURI(), r.Header.Get("If-Match"))
	_, _ = sum.Write(body) // a hash takes all

	return sum.Sum(nil)
}

func lookUp(ctx context.Context, db postgres.Querier, key string) (*answer, error) {
	rows, err := db.Query(ctx, `
		SELECT fingerprint, status, headers, body FROM idempotency_keys
		WHERE key = $1 AND created_at > now() - interval '1 day'`, key)
	if err != nil {
		return nil, err
	}

	found, err := pgx.CollectExactlyOneRow(rows, pgx.RowToAddrOfStructByPos[answer])
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil //nolint:nilnil // none is an answer too
	}

	return found, err
}

// answer runs the request and keeps its answer, unless that says that the
// service is in trouble.
func (a answers) answer(w http.ResponseWriter, r *http.Request, conn *pgxpool.Conn, key string, fingerprint []byte) error {
	recorded := recorder{ResponseWriter: w, status: http.StatusOK}
	a.next.ServeHTTP(&recorded, r)

	result := answer{Fingerprint: fingerprint, Status: recorded.status, Headers: map[string]string{}, Body: recorded.body.Bytes()}

	for _, name := range kept {
		if value := w.Header().Get(name); value != "" {
			result.Headers[name] = value
		}
	}

	if result.Status < http.StatusInternalServerError {
		// It happened, whether or not the client still waits.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), checkTimeout)
		defer cancel()

		_, err := conn.Exec(ctx, `
			INSERT INTO idempotency_keys (key, fingerprint, status, headers, body) VALUES ($1, $2, $3, $4, $5)
			ON CONFLICT ON CONSTRAINT idempotency_keys_pkey DO UPDATE
			SET fingerprint = excluded.fingerprint, status = excluded.status, headers = excluded.headers, body = excluded.body, created_at = now()`,
			key, result.Fingerprint, result.Status, result.Headers, append([]byte{}, result.Body...))
		if err != nil {
			return err
		}
	}

	result.write(w)

	return nil
}

func (a answer) write(w http.ResponseWriter) {
	for name, value := range a.Headers {
		w.Header().Set(name, value)
	}

	w.WriteHeader(a.Status)

	_, _ = w.Write(a.Body) // the client is gone: nobody to tell
}

// recorder holds an answer back. Headers go to the answer itself.
type recorder struct {
	http.ResponseWriter

	status int
	body   bytes.Buffer
}

func (r *recorder) WriteHeader(status int) { r.status = status }

func (r *recorder) Write(data []byte) (int, error) { return r.body.Write(data) }

// ExpireAnswers deletes the answers that are kept no longer and returns how many
// there were.
func ExpireAnswers(ctx context.Context, pool *pgxpool.Pool) (int64, error) {
	tag, err := pool.Exec(ctx, `DELETE FROM idempotency_keys WHERE created_at <= now() - interval '1 day'`)
	if err != nil {
		return 0, fmt.Errorf("deleting old answers: %w", err)
	}

	return tag.RowsAffected(), nil
}
