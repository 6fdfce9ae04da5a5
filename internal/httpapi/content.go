package httpapi

import (
	"unicode/utf8"

	"github.com/danielgtaylor/huma/v2"

	"github.com/millracehq/millrace/internal/engine/event"
)

// content is bytes in JSON: text, or base64 if they are not valid UTF-8.
type content struct {
	Text   *string `json:"text,omitempty" maxLength:"1048576" doc:"The bytes, if they are UTF-8."`
	Base64 []byte  `json:"base64,omitempty" maxLength:"1398104" doc:"The bytes, if they are not UTF-8."`
}

// contentOf returns data as content; nil stays nil.
func contentOf(data []byte) *content {
	switch {
	case data == nil:
		return nil
	case utf8.Valid(data):
		text := string(data)

		return &content{Text: &text}
	default:
		return &content{Base64: data}
	}
}

func (c content) bytes() ([]byte, error) {
	switch {
	case (c.Text == nil) == (c.Base64 == nil):
		return nil, event.Errorf(event.Invalid, "payload: expected either text or base64")
	case c.Text != nil:
		return []byte(*c.Text), nil
	default:
		return c.Base64, nil
	}
}

// headers holds the headers of a message.
type headers struct{ event.Headers }

// Schema implements huma.SchemaProvider.
func (headers) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{
		Type:        huma.TypeObject,
		Description: `Names and values. A value that is not text is encoded as {"base64": "..."}.`,
		AdditionalProperties: &huma.Schema{OneOf: []*huma.Schema{
			{Type: huma.TypeString},
			{
				Type: huma.TypeObject, Required: []string{"base64"}, AdditionalProperties: false,
				Properties: map[string]*huma.Schema{"base64": {Type: huma.TypeString, ContentEncoding: "base64"}},
			},
		}},
	}
}
