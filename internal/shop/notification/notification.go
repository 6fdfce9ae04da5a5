// Package notification tells users what happened: by e-mail, by webhook, or in
// the log. A notification is sent at least once, and under an id that depends
// on its message alone, so that a receiver recognises a second copy.
package notification

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

// Topic carries the requests for notifications.
const Topic = "notifications"

// Channel is a way to reach a user.
type Channel string

// Channels.
const (
	Email   Channel = "email"
	Webhook Channel = "webhook"
	Log     Channel = "log"
)

// MailServer is what e-mails need; see event.Unavailable.
const MailServer = "mail server"

// Limits of a notification.
const (
	maxContent = 100 << 10 // bytes
)

// Requested asks for a notification.
type Requested struct {
	UserID  string `json:"user_id"`
	Content string `json:"content"`
	// Channel is e-mail if empty.
	Channel Channel `json:"channel,omitempty"`

	// address is where an e-mail goes; Admit looks it up.
	address string
}

// Topic implements event.Payload.
func (Requested) Topic() string { return Topic }

// Key implements event.Payload.
func (r Requested) Key() string { return r.UserID }

// Subject implements event.Personal.
func (r Requested) Subject() string { return r.UserID }

// Validate implements event.Payload.
func (r Requested) Validate() error {
	errs := []error{event.CheckID("user_id", r.UserID)}

	switch {
	case r.Content == "":
		errs = append(errs, errors.New("content: is missing, expected a text"))
	case len(r.Content) > maxContent:
		errs = append(errs, fmt.Errorf("content: has %d bytes, expected at most %d", len(r.Content), maxContent))
	}

	switch r.channel() {
	case Email, Webhook, Log:
	default:
		errs = append(errs, fmt.Errorf("channel: is %q, expected %s, %s or %s", clip(string(r.Channel)), Email, Webhook, Log))
	}

	return errors.Join(errs...)
}

func (r Requested) channel() Channel {
	if r.Channel == "" {
		return Email
	}

	return r.Channel
}

// Directory returns the e-mail addresses of users: "" for one who was erased,
// nothing for one who does not exist.
type Directory func(ctx context.Context, db postgres.Querier, ids []string) (map[string]string, error)

// Delivery is what became of a notification.
type Delivery struct {
	// Answer is what the provider said.
	Answer string
}

// Service sends notifications.
type Service struct {
	pool      *pgxpool.Pool
	directory Directory
	mailer    *mailer
	webhook   *webhook
	logger    *slog.Logger
}

// NewService returns a service that has not connected to anything.
func NewService(cfg Config, pool *pgxpool.Pool, directory Directory, logger *slog.Logger) (*Service, error) {
	logger = logger.With(slog.String("component", "notification"))

	mailer, err := newMailer(cfg.Email)
	if err != nil {
		return nil, err
	}

	webhook, err := newWebhook(cfg.Webhook)
	if err != nil {
		return nil, err
	}

	return &Service{pool: pool, directory: directory, mailer: mailer, webhook: webhook, logger: logger}, nil
}

// Admit looks up the addresses of those who get an e-mail. Nobody is told any
// more who was erased.
func (s *Service) Admit(ctx context.Context, db postgres.Querier, events []event.Event[Requested]) ([]error, error) {
	var ids []string

	for _, e := range events {
		if e.Payload.channel() == Email {
			ids = append(ids, e.Payload.UserID)
		}
	}

	if len(ids) == 0 {
		return make([]error, len(events)), nil
	}

	addresses, err := s.directory(ctx, db, ids)
	if err != nil {
		return nil, err
	}

	verdicts := make([]error, len(events))

	for i := range events {
		p := &events[i].Payload
		if p.channel() != Email {
			continue
		}

		address, known := addresses[p.UserID]

		switch {
		case !known:
			verdicts[i] = event.Reject(fmt.Errorf("user_id: there is no user %s to send an e-mail to", p.UserID))
		case address == "":
			verdicts[i] = event.ErrSkip
		}

		p.address = address
	}

	return verdicts, nil
}

// Needs names the dependency that sending e needs: e-mails wait together while
// the mail server is away. The others need none.
func (s *Service) Needs(e event.Event[Requested]) string {
	if e.Payload.channel() == Email && s.mailer != nil {
		return MailServer
	}

	return ""
}

// Send sends one notification. What may go better later is an
// event.LaterError, what the provider refuses for good a rejection with the
// provider's words, and a mail server that is away an event.UnavailableError.
func (s *Service) Send(ctx context.Context, e event.Event[Requested]) (Delivery, error) {
	switch e.Payload.channel() {
	case Webhook:
		return s.webhook.send(ctx, e)
	case Log:
		return s.log(e)
	default:
		return s.email(ctx, e)
	}
}

func (s *Service) log(e event.Event[Requested]) (Delivery, error) {
	s.logger.Info("notification", slog.String("user_id", e.Payload.UserID), slog.String("content", e.Payload.Content))

	return Delivery{Answer: "logged"}, nil
}

func (s *Service) email(ctx context.Context, e event.Event[Requested]) (Delivery, error) {
	if s.mailer == nil {
		s.logger.Info("e-mail (set notification.email.host to send it)",
			slog.String("user_id", e.Payload.UserID), slog.String("message_id", e.ID.String()), slog.String("content", e.Payload.Content))

		return Delivery{Answer: "logged: notification.email.host is not set"}, nil
	}

	return s.mailer.send(ctx, e)
}

// Sent is a notification with what became of it.
type Sent = event.Effected[Requested, Delivery]

// Record stores what became of notifications.
func (s *Service) Record(ctx context.Context, tx pgx.Tx, sent []Sent) ([]event.Outgoing, error) {
	var (
		messages = make([]uuid.UUID, len(sent))
		users    = make([]string, len(sent))
		channels = make([]string, len(sent))
		statuses = make([]string, len(sent))
		answers  = make([]string, len(sent))
	)

	for i, n := range sent {
		messages[i], users[i], channels[i] = n.ID, n.Payload.UserID, string(n.Payload.channel())
		statuses[i], answers[i] = "skipped", "the user was erased"

		if n.Result != nil {
			statuses[i], answers[i] = "sent", event.Text(n.Result.Answer)
		}
	}

	_, err := tx.Exec(ctx, `
		INSERT INTO notifications (message_id, user_id, channel, status, answer)
		SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[])`,
		messages, users, channels, statuses, answers)
	if err != nil {
		return nil, fmt.Errorf("recording notifications: %w", err)
	}

	return nil, nil
}

// Forget deletes what is kept of the notifications to a user, and returns how
// many they were.
func (s *Service) Forget(ctx context.Context, tx pgx.Tx, userID string) (int64, error) {
	tag, err := tx.Exec(ctx, `DELETE FROM notifications WHERE user_id = $1`, userID)
	if err != nil {
		return 0, fmt.Errorf("forgetting notifications of user %s: %w", userID, err)
	}

	return tag.RowsAffected(), nil
}

// Entry is a notification that was sent.
type Entry struct {
	MessageID uuid.UUID `json:"message_id"`
	UserID    string    `json:"user_id"`
	Channel   Channel   `json:"channel"`
	Status    string    `json:"status"`
	Answer    string    `json:"answer"`
	SentAt    time.Time `json:"sent_at"`
}

// List returns the newest notifications, at most limit. An empty userID means
// those of all users.
func (s *Service) List(ctx context.Context, userID string, limit int) ([]Entry, error) {
	rows, err := s.pool.Query(ctx, `
		SELECT message_id, user_id, channel, status, answer, sent_at FROM notifications
		WHERE $1 = '' OR user_id = $1 ORDER BY sent_at DESC LIMIT $2`, userID, limit)
	if err != nil {
		return nil, fmt.Errorf("listing notifications: %w", err)
	}

	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Entry])
	if err != nil {
		return nil, fmt.Errorf("listing notifications: %w", err)
	}

	return list, nil
}

func clip(s string) string {
	const limit = 500
	if utf8.RuneCountInString(s) <= limit {
		return s
	}

	return string([]rune(s)[:limit]) + "..."
}
