package httpapi

import (
	"encoding/base64"
	"fmt"
	"net/url"

	"github.com/danielgtaylor/huma/v2"

	"github.com/millracehq/millrace/internal/engine/event"
)

// Paging is the query of a paged list.
type Paging struct {
	Cursor string `query:"cursor" maxLength:"500" doc:"The start of the page: next from the previous page."`
	Limit  int    `query:"limit" minimum:"1" maximum:"100" default:"20"`

	url   url.URL
	after string
}

// Resolve implements huma.Resolver. It decodes the cursor.
func (p *Paging) Resolve(ctx huma.Context) []error {
	p.url = ctx.URL()

	text, err := base64.RawURLEncoding.DecodeString(p.Cursor)
	if err != nil || event.Storable(string(text)) != nil {
		return []error{p.invalid()}
	}

	p.after = string(text)

	return nil
}

func (p *Paging) invalid() error {
	return &huma.ErrorDetail{Location: "query.cursor", Message: "is not a cursor, expected `next` from the previous page", Value: p.Cursor}
}

// After scans the cursor into values with a format for fmt.Sscanf. Without a cursor
// it leaves them unchanged.
func (p *Paging) After(format string, values ...any) error {
	if p.after == "" {
		return nil
	}

	// The end mark makes Sscanf refuse anything after the values.
	const end = " ."
	n, err := fmt.Sscanf(p.after+end, format+end, values...)
	ok := err == nil && n == len(values)

	for _, value := range values {
		if text, isText := value.(*string); isText && event.Storable(*text) != nil {
			ok = false
		}
	}

	if !ok {
		return huma.Error422UnprocessableEntity("validation failed", p.invalid())
	}

	return nil
}

// List is a page of a list.
type List[T any] struct {
	Link string `header:"Link" doc:"The next page, if any, as rel=next."`
	Body Items[T]
}

// Items is the body of a list.
type Items[T any] struct {
	Items []T    `json:"items" nullable:"false"`
	Next  string `json:"next,omitempty" doc:"The cursor of the next page."`
	Total int    `json:"total,omitempty" doc:"The total, if an unpaged list is incomplete; 10001 means more than 10,000."`
}

// All returns a list without further pages, or err.
func All[T any](list []T, err error) (*List[T], error) {
	return &List[T]{Body: Items[T]{Items: append([]T{}, list...)}}, err
}

// First returns the first limit items of list, or err. list must have been read with a
// limit of limit + 1. If there are more items, First also returns their total number.
func First[T any](list []T, err error, limit int, count func() (int, error)) (*List[T], error) {
	out, err := All(list[:min(len(list), limit)], err)
	if err == nil && len(list) > limit {
		out.Body.Total, err = count()
	}

	return out, err
}

// Page returns a page of list, which must have been read with a limit of p.Limit + 1.
// cursor formats an item the way After reads it.
func Page[T any](p *Paging, list []T, cursor func(T) string) *List[T] {
	out, _ := All(list[:min(len(list), p.Limit)], nil)
	if len(list) > p.Limit {
		out.setNext(p, cursor(list[p.Limit-1]))
	}

	return out
}

func (l *List[T]) setNext(p *Paging, cursor string) {
	l.Body.Next = base64.RawURLEncoding.EncodeToString([]byte(cursor))

	query := p.url.Query()
	query.Set("cursor", l.Body.Next)
	l.Link = fmt.Sprintf(`<%s?%s>; rel="next"`, p.url.Path, query.Encode())
}
