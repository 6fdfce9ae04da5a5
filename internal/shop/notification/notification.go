// Package notification notifies users by e-mail, by webhook or in the log. A
// notification is sent at least once, with an id that depends on its message
// alone, so that a receiver can recognise a duplicate.
package notification

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millracehq/millrace/internal/engine/check"
	"github.com/millracehq/millrace/internal/engine/crashpoint"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/engine/scrub"
)

// Topics. A request becomes a message on the topic of its channel, so that each
// channel has its own queue, breaker and retries. A channel that cannot send does not
// delay the others.
const (
	Topic        = "notifications"
	TopicEmail   = "notifications.email"
	TopicWebhook = "notifications.webhook"
	TopicLog     = "notifications.log"
)

// Channel is a way to reach a user.
type Channel string

// Channels.
const (
	Email   Channel = "email"
	Webhook Channel = "webhook"
	Log     Channel = "log"
)

// Dependencies that sending needs; see event.Unavailable.
const (
	MailServer      = "mail server"
	WebhookReceiver = "webhook receiver"
)

// Maximum lengths of content: in characters, and for a webhook in bytes as JSON,
// because Standard Webhooks 1.0 recommends bodies below 20 kB.
const (
	maxContent        = 100 << 10
	maxWebhookContent = 19 << 10
)

// Requested is a request for a notification.
type Requested struct {
	UserID  string `doc:"The user."                                        format:"id"   json:"user_id"`
	Content string `doc:"The text. For a webhook, at most 19 KiB as JSON." format:"text" json:"content" maxLength:"102400" minLength:"1"`
	// Channel defaults to e-mail.
	Channel Channel `doc:"How to reach the user; e-mail if missing." enum:"email,webhook,log" json:"channel,omitempty"`
}

// Topic implements event.Payload.
func (Requested) Topic() string { return Topic }

// Key implements event.Payload.
func (r Requested) Key() string { return r.UserID }

// Subject implements event.Personal.
func (r Requested) Subject() string { return r.UserID }

// Marks implements event.Personal.
func (Requested) Marks() []string { return nil }

// Validate implements event.Payload.
func (r Requested) Validate() error {
	err := Message{UserID: r.UserID, Content: r.Content}.Validate()

	switch r.channel() {
	case Email, Log:
	case Webhook:
		err = errors.Join(err, checkWebhookContent(r.Content))
	default:
		err = errors.Join(err, fmt.Errorf("channel: is %.500q, expected %s, %s or %s", r.Channel, Email, Webhook, Log))
	}

	return err
}

func (r Requested) channel() Channel { return cmp.Or(r.Channel, Email) }

// Message is what a channel sends to a user.
type Message struct {
	UserID  string `doc:"The user."                                        format:"id"   json:"user_id"`
	Content string `doc:"The text. For a webhook, at most 19 KiB as JSON." format:"text" json:"content" maxLength:"102400" minLength:"1"`
}

// Key implements event.Payload.
func (m Message) Key() string { return m.UserID }

// Subject implements event.Personal.
func (m Message) Subject() string { return m.UserID }

// Marks implements event.Personal.
func (Message) Marks() []string { return nil }

// Validate implements event.Payload.
func (m Message) Validate() error {
	return errors.Join(
		event.CheckID("user_id", m.UserID),
		check.That(m.Content != "", "content: is missing, expected text"),
		event.CheckText("content", m.Content, maxContent),
	)
}

// The messages of the channels.
type (
	// EmailDue is a message to send by e-mail.
	EmailDue struct {
		Message

		// address is the recipient, which AdmitEmail looks up.
		address string
	}
	// WebhookDue is a message to post to the webhook's receiver.
	WebhookDue struct {
		Message

		// At is when the notification was requested. Each attempt posts the same
		// body, so the time is part of the message.
		At event.Time `doc:"When the notification was requested." json:"at"`
	}
	// LogDue is a message to write to the log.
	LogDue struct{ Message }
)

// Due is a message of a channel.
type Due interface {
	event.Payload
	Channel() Channel
}

// Topic implements event.Payload.
func (EmailDue) Topic() string { return TopicEmail }

// Channel implements Due.
func (EmailDue) Channel() Channel { return Email }

// Topic implements event.Payload.
func (WebhookDue) Topic() string { return TopicWebhook }

// Channel implements Due.
func (WebhookDue) Channel() Channel { return Webhook }

// Validate implements event.Payload.
func (w WebhookDue) Validate() error {
	return errors.Join(w.Message.Validate(), checkWebhookContent(w.Content),
		check.That(!w.At.IsZero(), "at: is missing, expected the time of the request"))
}

// Topic implements event.Payload.
func (LogDue) Topic() string { return TopicLog }

// Channel implements Due.
func (LogDue) Channel() Channel { return Log }

// checkWebhookContent rejects content that would make the body too large.
func checkWebhookContent(content string) error {
	encoded, err := json.Marshal(content)

	return check.That(err == nil && len(encoded) <= maxWebhookContent,
		fmt.Sprintf("content: has %d bytes as JSON, expected at most %d for a webhook", len(encoded), maxWebhookContent))
}

// Directory looks up users' e-mail addresses.
type Directory struct {
	// Emails returns the addresses by id. The address of an erased user is empty; a
	// user who does not exist has no entry.
	Emails func(ctx context.Context, db postgres.Querier, ids []string) (map[string]string, error)
	// Creations are the topics on which users are created.
	Creations []string
}

// Service sends notifications.
type Service struct {
	retention time.Duration
	pool      *pgxpool.Pool
	directory Directory
	mailer    *mailer  // nil if no mail server is configured
	webhook   *webhook // nil if no URL is configured
	logger    *slog.Logger
}

// NewService returns a service. It does not connect yet.
func NewService(cfg Config, pool *pgxpool.Pool, directory Directory, logger *slog.Logger) (s *Service, err error) {
	s = &Service{retention: cfg.Retention, pool: pool, directory: directory, logger: logger.With(slog.String("component", "notification"))}

	if cfg.Email.Host != "" {
		if s.mailer, err = newMailer(cfg.Email); err != nil {
			return nil, err
		}
	}

	if cfg.Webhook.URL != "" {
		if s.webhook, err = newWebhook(cfg.Webhook); err != nil {
			return nil, err
		}
	}

	return s, nil
}

// Route passes each request on to its channel.
func (s *Service) Route(_ context.Context, _ pgx.Tx, events []event.Event[Requested]) ([]event.Outgoing, error) {
	outgoing := make([]event.Outgoing, 0, len(events))

	for _, e := range events {
		message := Message{UserID: e.Payload.UserID, Content: e.Payload.Content}

		switch e.Payload.channel() {
		case Webhook:
			outgoing = append(outgoing, e.Then(WebhookDue{Message: message, At: event.Time{Time: time.Now().UTC().Truncate(time.Millisecond)}}))
		case Log:
			outgoing = append(outgoing, e.Then(LogDue{Message: message}))
		default:
			outgoing = append(outgoing, e.Then(EmailDue{Message: message}))
		}
	}

	return outgoing, nil
}

// AdmitEmail looks up the recipients' addresses. It skips users who have been erased. An
// e-mail to a user who does not exist awaits the user, and is eventually rejected.
func (s *Service) AdmitEmail(ctx context.Context, db postgres.Querier, events []event.Event[EmailDue]) ([]error, error) {
	addresses, err := s.directory.Emails(ctx, db, postgres.Column(events, event.Event[EmailDue].AggregateID))
	if err != nil {
		return nil, err
	}

	verdicts := make([]error, len(events))

	for i := range events {
		p := &events[i].Payload
		address, known := addresses[p.UserID]

		switch {
		case !known && !events[i].Overdue:
			verdicts[i] = event.Await(fmt.Errorf("user_id: there is no user %s yet to send an e-mail to", p.UserID), s.directory.Creations...)
		case !known:
			verdicts[i] = event.Reject(fmt.Errorf("user_id: there is no user %s to send an e-mail to", p.UserID))
		case address == "":
			verdicts[i] = event.ErrSkip
		}

		p.address = address
	}

	return verdicts, nil
}

// NeedsMailServer returns the dependency that e-mails need, if they are sent.
func (s *Service) NeedsMailServer(event.Event[EmailDue]) string {
	if s.mailer == nil {
		return ""
	}

	return MailServer
}

// anonymous removes the content from another system's answer, because answers are
// logged and stored, and systems repeat what they are sent.
func (m Message) anonymous(answer string) string {
	words := strings.FieldsFunc(m.Content[:min(len(m.Content), maxAnswer)], func(c rune) bool { return !unicode.IsLetter(c) && !unicode.IsDigit(c) })
	if len(words) == 0 {
		return answer
	}

	// The expression for all words is large, and an answer rarely contains even the first.
	if !regexp.MustCompile(`(?i)` + spelled(words[0])).MatchString(answer) {
		return answer
	}

	return echoOf(words[:min(len(words), maxEcho)]).ReplaceAllLiteralString(answer, "(content)")
}

// anonymous also removes the recipient's address.
func (e EmailDue) anonymous(answer string) string {
	if e.address != "" {
		answer = regexp.MustCompile(`(?i)`+regexp.QuoteMeta(e.address)).ReplaceAllLiteralString(answer, "(address)")
	}

	return e.Message.anonymous(answer)
}

// maxEcho is the maximum number of words that anonymous looks for: each word nests the
// expression two levels deeper.
const maxEcho = 200

// echoOf returns an expression for a text that begins with words and may be cut off after
// the second one. The words may be separated by anything that is not a word, even if it
// was escaped as JSON, once or several times.
func echoOf(words []string) *regexp.Regexp {
	const between = `(?:[^\pL\pN]|\\[bfnrt]|\\u[0-9a-f]{4})`

	pattern := ""

	for i := len(words) - 1; i > 0; i-- {
		next := spelled(words[i]) + pattern
		if i == 1 {
			pattern = between + `+` + next
		} else {
			pattern = `(?:` + between + `+(?:` + next + `|[\pL\pN]+$))?` // or the beginning of the word
		}
	}

	return regexp.MustCompile(`(?i)` + spelled(words[0]) + pattern)
}

// spelled returns an expression for a word, as text and as ASCII-only JSON.
func spelled(word string) string {
	escaped := strings.Trim(strconv.QuoteToASCII(word), `"`)
	if escaped == word {
		return word
	}

	return `(?:` + word + `|` + strings.ReplaceAll(escaped, `\`, `\\+`) + `)`
}

// SendEmail sends an e-mail and returns the answer of the mail server. A temporary
// failure is an event.LaterError, a final refusal is a rejection with the server's
// reason, and an unavailable server is an event.UnavailableError.
func (s *Service) SendEmail(ctx context.Context, e event.Event[EmailDue]) (answer string, err error) {
	if s.mailer == nil {
		s.logger.LogAttrs(ctx, slog.LevelInfo, "e-mail not sent; set notification.email.host to send e-mails",
			append(event.TraceAttrs(e.Trace), slog.String("user_id", e.Payload.UserID), slog.String("message_id", e.ID.String()))...)

		return "logged: notification.email.host is not set", nil
	}

	answer, err = s.mailer.send(ctx, e)

	crashpoint.At(crashpoint.Emailed)

	return answer, err
}

// NeedsReceiver returns the dependency that webhooks need.
func (s *Service) NeedsReceiver(event.Event[WebhookDue]) string { return WebhookReceiver }

// PostWebhook posts a webhook and returns the receiver's answer. See webhook.send for
// its errors.
func (s *Service) PostWebhook(ctx context.Context, e event.Event[WebhookDue]) (answer string, err error) {
	if s.webhook == nil {
		return "", event.Reject(errors.New("channel: is webhook, but notification.webhook.url is not set"))
	}

	return s.webhook.send(ctx, e)
}

// WriteLog writes a notification to the log.
func (s *Service) WriteLog(ctx context.Context, e event.Event[LogDue]) (answer string, err error) {
	s.logger.LogAttrs(ctx, slog.LevelInfo, "notification",
		append(event.TraceAttrs(e.Trace), slog.String("user_id", e.Payload.UserID), slog.String("message_id", e.ID.String()))...)

	return "logged", nil
}

// Record stores the results of notifications. A result is the receiver's answer, if
// the notification was not skipped.
func Record[P Due](ctx context.Context, tx pgx.Tx, sent []event.Effected[P, string]) ([]event.Outgoing, error) {
	_, err := tx.Exec(ctx, `
		INSERT INTO notifications (message_id, user_id, channel, status, answer)
		SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[])`,
		postgres.Column(sent, func(n event.Effected[P, string]) uuid.UUID { return n.ID }),
		postgres.Column(sent, event.Effected[P, string].AggregateID),
		postgres.Column(sent, func(n event.Effected[P, string]) string { return string(n.Payload.Channel()) }),
		postgres.Column(sent, func(n event.Effected[P, string]) string {
			if n.Result == nil {
				return "skipped"
			}

			return "sent"
		}),
		postgres.Column(sent, func(n event.Effected[P, string]) string {
			if n.Result == nil {
				return "the user was erased"
			}

			return event.Text(scrub.Text(*n.Result))
		}))
	if err != nil {
		return nil, fmt.Errorf("recording notifications: %w", err)
	}

	return nil, nil
}

// Forget deletes the records of notifications to a user and returns their
// number.
func (s *Service) Forget(ctx context.Context, tx pgx.Tx, userID string, _ bool) (int64, error) {
	tag, err := tx.Exec(ctx, `DELETE FROM notifications WHERE user_id = $1`, userID)
	if err != nil {
		return 0, fmt.Errorf("deleting notifications of user %s: %w", userID, err)
	}

	return tag.RowsAffected(), nil
}

// DeleteExpired deletes expired records and returns their number.
func (s *Service) DeleteExpired(ctx context.Context) (int64, error) {
	return postgres.DeleteExpired(ctx, s.pool, "notifications", "sent_at", s.retention)
}

// Entry is the record of a notification.
type Entry struct {
	MessageID uuid.UUID `json:"message_id"`
	UserID    string    `json:"user_id"`
	Channel   Channel   `json:"channel"`
	Status    string    `json:"status"`
	Answer    string    `json:"answer"`
	SentAt    time.Time `json:"sent_at"`
}

// List returns up to limit notifications, newest first. An empty userID selects
// all users.
func (s *Service) List(ctx context.Context, userID string, limit int) ([]Entry, error) {
	where, args := of(userID)

	list, err := postgres.Collect(ctx, s.pool, pgx.RowToStructByPos[Entry], `
		SELECT message_id, user_id, channel, status, answer, sent_at FROM notifications
		`+where+` ORDER BY sent_at DESC LIMIT `+strconv.Itoa(limit), args...)
	if err != nil {
		return nil, fmt.Errorf("listing notifications: %w", err)
	}

	return list, nil
}

// Count counts the notifications that List lists; see [postgres.CountRows].
func (s *Service) Count(ctx context.Context, userID string) (int, error) {
	where, args := of(userID)

	return postgres.CountRows(ctx, s.pool, `SELECT FROM notifications `+where, args...)
}

// of returns the condition for a user's notifications, or none for those of all users. A
// plan for both would not use the index.
func of(userID string) (where string, args []any) {
	if userID == "" {
		return ``, nil
	}

	return `WHERE user_id = $1`, []any{userID}
}
