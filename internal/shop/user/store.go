package user

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/eventstore"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

// snapshotEvery is the number of events between snapshots of a stream.
const snapshotEvery = 100

// snapshotSchema is the version of the shape of User in snapshots.
const snapshotSchema = 1

const snapshotKind = "snapshot"

// Service reads and writes users.
type Service struct {
	cfg  Config
	pool *pgxpool.Pool
}

// NewService returns a service on pool.
func NewService(cfg Config, pool *pgxpool.Pool) *Service { return &Service{cfg: cfg, pool: pool} }

// NotFound returns the error for a user who does not exist.
func NotFound(id string) error { return event.Missing("user", id) }

// Session holds the users of a transaction: it loads and locks them, and saves
// their events.
type Session struct {
	tx      pgx.Tx
	rings   map[string]keyring
	users   map[string]User
	records []eventstore.Record
	misses  map[uuid.UUID]string
}

// Open locks the users with these ids until the transaction ends and folds their
// streams. It creates a key for each new user among created.
func (s *Service) Open(ctx context.Context, tx pgx.Tx, ids, created []string) (*Session, error) {
	if err := addKeys(ctx, tx, created); err != nil {
		return nil, err
	}

	rings, users, err := load(ctx, tx, selectKeys+` ORDER BY user_id FOR NO KEY UPDATE`, ids)
	if err != nil {
		return nil, err
	}

	return &Session{tx: tx, rings: rings, users: users, misses: map[uuid.UUID]string{}}, nil
}

func addKeys(ctx context.Context, tx pgx.Tx, ids []string) error {
	if len(ids) == 0 {
		return nil
	}

	_, err := tx.Exec(ctx, `
		INSERT INTO user_keys (user_id, key) SELECT * FROM unnest($1::text[], $2::bytea[]) AS k (id, key) ORDER BY id
		ON CONFLICT DO NOTHING`, ids, postgres.Column(ids, func(string) []byte { return newKey() }))
	if err != nil {
		return fmt.Errorf("creating user keys: %w", err)
	}

	return nil
}

const selectKeys = `SELECT user_id, key FROM user_keys WHERE user_id = ANY($1)`

func loadKeys(ctx context.Context, db postgres.Querier, sql string, ids []string) (map[string]keyring, error) {
	rows, err := db.Query(ctx, sql, ids)
	if err != nil {
		return nil, fmt.Errorf("loading user keys: %w", err)
	}

	rings := make(map[string]keyring, len(ids))

	var (
		id  string
		key []byte
	)

	_, err = pgx.ForEachRow(rows, []any{&id, &key}, func() (err error) {
		rings[id], err = newKeyring(id, key)

		return err
	})
	if err != nil {
		return nil, fmt.Errorf("loading user keys: %w", err)
	}

	return rings, nil
}

// load reads the keys of users with sql, and folds their streams.
func load(ctx context.Context, db postgres.Querier, sql string, ids []string) (rings map[string]keyring, users map[string]User, err error) {
	if rings, err = loadKeys(ctx, db, sql, ids); err != nil {
		return nil, nil, err
	}

	streams := make([]string, 0, len(rings))
	for id := range rings {
		streams = append(streams, Stream(id))
	}

	loaded, err := eventstore.Load(ctx, db, streams, snapshotSchema)
	if err != nil {
		return nil, nil, err
	}

	users = make(map[string]User, len(rings))

	for id, ring := range rings {
		if users[id], err = fold(ring, loaded[Stream(id)]); err != nil {
			return nil, nil, err
		}
	}

	return rings, users, nil
}

func fold(ring keyring, stream eventstore.Stream) (User, error) {
	u := User{ID: ring.id}

	if s := stream.Snapshot; s != nil && ring.aead != nil {
		plain, err := ring.open(snapshotKind, s.Data)
		if err != nil {
			return u, err
		}

		if err := json.Unmarshal(plain, &u); err != nil {
			return u, fmt.Errorf("decoding snapshot of user %s: %w", ring.id, err)
		}
	}

	for _, e := range stream.Events {
		data, err := ring.decode(e)
		if err != nil {
			return u, err
		}

		u = u.Apply(data)
	}

	return u, nil
}

// User returns the state of a user. A user who does not exist has version 0.
func (s *Session) User(id string) User {
	if u, ok := s.users[id]; ok {
		return u
	}

	return User{ID: id}
}

// Record applies events to a user that the session holds.
func (s *Session) Record(id string, messageID uuid.UUID, events []eventstore.Data) error {
	u := s.User(id)

	for _, data := range events {
		stored, err := s.rings[id].record(data)
		if err != nil {
			return fmt.Errorf("sealing %s of user %s: %w", data.EventType(), id, err)
		}

		u = u.Apply(data)
		s.records = append(s.records, eventstore.Record{Stream: Stream(id), Version: u.Version, Data: stored, MessageID: messageID})
	}

	s.users[id] = u

	return nil
}

// Miss records a message about a user who does not exist.
func (s *Session) Miss(id string, messageID uuid.UUID) { s.misses[messageID] = id }

// Save stores the recorded events and misses.
func (s *Session) Save(ctx context.Context) error {
	slices.SortStableFunc(s.records, func(a, b eventstore.Record) int {
		return cmp.Or(cmp.Compare(a.Stream, b.Stream), cmp.Compare(a.Version, b.Version))
	})

	if err := eventstore.Append(ctx, s.tx, s.records); err != nil {
		return err
	}

	if err := s.snapshot(ctx); err != nil {
		return err
	}

	if len(s.misses) == 0 {
		return nil
	}

	messages := slices.Collect(maps.Keys(s.misses))
	ids := postgres.Column(messages, func(id uuid.UUID) string { return s.misses[id] })

	_, err := s.tx.Exec(ctx, `INSERT INTO user_misses (message_id, user_id) SELECT * FROM unnest($1::uuid[], $2::text[])`, messages, ids)
	if err != nil {
		return fmt.Errorf("recording updates for unknown users: %w", err)
	}

	return nil
}

func (s *Session) snapshot(ctx context.Context) error {
	var snapshots []eventstore.Snapshot

	for _, r := range s.records {
		if r.Version%snapshotEvery != 0 {
			continue
		}

		id := r.Stream[len(streamPrefix):]
		u := s.users[id]

		box, err := s.rings[id].seal(snapshotKind, u)
		if err != nil {
			return err
		}

		data, err := json.Marshal(box)
		if err != nil {
			return fmt.Errorf("encoding snapshot of user %s: %w", id, err)
		}

		snapshots = append(snapshots, eventstore.Snapshot{Stream: r.Stream, Version: u.Version, Schema: snapshotSchema, Data: data})
	}

	if len(snapshots) == 0 {
		return nil
	}

	return eventstore.SaveSnapshots(ctx, s.tx, snapshots)
}

// Emails returns the e-mail addresses of users by id: "" for an erased user and
// no entry for one who does not exist. It reads the event store, because the
// projection may lag behind.
func (s *Service) Emails(ctx context.Context, db postgres.Querier, ids []string) (map[string]string, error) {
	_, users, err := load(ctx, db, selectKeys, ids)
	if err != nil {
		return nil, err
	}

	emails := make(map[string]string, len(users))

	for id, u := range users {
		if u.Version > 0 {
			emails[id] = u.Email
		}
	}

	return emails, nil
}

// Marks returns all names and e-mail addresses that a user has had.
func (s *Service) Marks(ctx context.Context, db postgres.Querier, id string) (marks []string, err error) {
	history, err := read(ctx, db, id)

	for _, e := range history {
		switch d := e.Data.(type) {
		case Created:
			marks = append(marks, d.Name, d.Email)
		case EmailUpdated:
			marks = append(marks, d.NewEmail)
		case NameUpdated:
			marks = append(marks, d.NewName)
		}
	}

	return marks, err
}

// addErased adds the row of a user who is erased before they exist.
func addErased(ctx context.Context, tx pgx.Tx, id string) error {
	_, err := tx.Exec(ctx, `INSERT INTO user_keys (user_id, erased_at) VALUES ($1, now()) ON CONFLICT DO NOTHING`, id)
	if err != nil {
		return fmt.Errorf("refusing user %s: %w", id, err)
	}

	return nil
}

// Erase makes the personal data of a user unreadable: in tx it destroys the key
// and everything derived from the data. The stream keeps its versions. Erase
// returns the number of users erased, 0 if the user had already been erased. A user who is
// known only from messages (seen) is recorded as erased, so that a later message does
// not create them. If seen is false, the error for an unknown user is [NotFound].
func (s *Service) Erase(ctx context.Context, tx pgx.Tx, id string, seen bool) (users int64, err error) {
	if seen {
		if err := addErased(ctx, tx, id); err != nil {
			return 0, err
		}
	}

	session, err := s.Open(ctx, tx, []string{id}, nil)
	if err != nil {
		return 0, err
	}

	switch u := session.User(id); {
	case u.Version == 0 && !seen:
		return 0, NotFound(id)
	case u.Erased:
		return 0, nil
	}

	if err := session.Record(id, event.NewID(), []eventstore.Data{Erased{}}); err != nil {
		return 0, err
	}

	if err := session.Save(ctx); err != nil {
		return 0, err
	}

	if err := eventstore.DropSnapshot(ctx, tx, Stream(id)); err != nil {
		return 0, err
	}

	// The projection does the same a moment later, but nobody may read the data
	// in between.
	_, err = tx.Exec(ctx, `UPDATE users SET erased = true, name = NULL, email = NULL, properties = '{}' WHERE id = $1`, id)
	if err != nil {
		return 0, fmt.Errorf("erasing user %s: %w", id, err)
	}

	if _, err = tx.Exec(ctx, `UPDATE user_keys SET key = NULL, erased_at = now() WHERE user_id = $1`, id); err != nil {
		return 0, fmt.Errorf("destroying the key of user %s: %w", id, err)
	}

	return 1, nil
}

// ForgetMisses deletes the updates of a user that arrived when the user did not exist,
// and returns their number.
func (s *Service) ForgetMisses(ctx context.Context, tx pgx.Tx, id string, _ bool) (int64, error) {
	tag, err := tx.Exec(ctx, `DELETE FROM user_misses WHERE user_id = $1`, id)
	if err != nil {
		return 0, fmt.Errorf("deleting the missed updates of user %s: %w", id, err)
	}

	return tag.RowsAffected(), nil
}

// Entry is an event in a user's history.
type Entry struct {
	Version    int             `json:"version"`
	Type       string          `json:"type"`
	Data       eventstore.Data `json:"data"`
	MessageID  uuid.UUID       `json:"message_id"`
	RecordedAt time.Time       `json:"recorded_at"`
}

// Details is a user with their history.
type Details struct {
	User

	History []Entry `json:"history"`
}

// Show returns a user with their history from the event store, or [NotFound].
func (s *Service) Show(ctx context.Context, id string) (Details, error) {
	history, err := read(ctx, s.pool, id)
	if err == nil && len(history) == 0 {
		err = NotFound(id)
	}

	if err != nil {
		return Details{}, err
	}

	details := Details{User: User{ID: id}, History: history}
	for _, e := range history {
		details.User = details.Apply(e.Data)
	}

	return details, nil
}

// read returns a user's events, or none if the user does not exist.
func read(ctx context.Context, db postgres.Querier, id string) ([]Entry, error) {
	rings, err := loadKeys(ctx, db, selectKeys, []string{id})
	if err != nil {
		return nil, err
	}

	ring, known := rings[id]
	if !known {
		return nil, nil
	}

	events, err := eventstore.Read(ctx, db, Stream(id))
	if err != nil {
		return nil, err
	}

	var history []Entry

	for _, e := range events {
		data, err := ring.decode(e)
		if err != nil {
			return nil, err
		}

		history = append(history, Entry{Version: e.Version, Type: e.Type, Data: data, MessageID: e.MessageID, RecordedAt: e.RecordedAt})
	}

	return history, nil
}

// Summary is a user in a list.
type Summary struct {
	ID        string    `json:"id"`
	Name      *string   `json:"name"`
	Email     *string   `json:"email"`
	Erased    bool      `json:"erased"`
	UpdatedAt time.Time `json:"updated_at"`
}

// List returns up to limit users from the projection, most recently changed first.
func (s *Service) List(ctx context.Context, limit int) ([]Summary, error) {
	list, err := postgres.Collect(ctx, s.pool, pgx.RowToStructByPos[Summary],
		`SELECT id, name, email, erased, updated_at FROM users ORDER BY updated_at DESC, id LIMIT $1`, limit)
	if err != nil {
		return nil, fmt.Errorf("listing users: %w", err)
	}

	return list, nil
}

// Count counts the users that List lists; see [postgres.CountRows].
func (s *Service) Count(ctx context.Context) (int, error) {
	return postgres.CountRows(ctx, s.pool, `SELECT FROM users`)
}

// Miss is an update of a user who did not exist. Its outcome is user_not_found.
type Miss struct {
	MessageID uuid.UUID `json:"message_id"`
	UserID    string    `json:"user_id"`
	MissedAt  time.Time `json:"missed_at"`
}

// Misses returns up to limit updates for unknown users, newest first.
func (s *Service) Misses(ctx context.Context, limit int) ([]Miss, error) {
	list, err := postgres.Collect(ctx, s.pool, pgx.RowToStructByPos[Miss],
		`SELECT message_id, user_id, missed_at FROM user_misses ORDER BY missed_at DESC LIMIT $1`, limit)
	if err != nil {
		return nil, fmt.Errorf("listing updates for unknown users: %w", err)
	}

	return list, nil
}

// CountMisses counts the updates that Misses lists; see [postgres.CountRows].
func (s *Service) CountMisses(ctx context.Context) (int, error) {
	return postgres.CountRows(ctx, s.pool, `SELECT FROM user_misses`)
}
