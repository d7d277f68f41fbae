package admin

import (
	_ "embed"

	"github.com/valyala/fasthttp"
)

// openAPI describes every endpoint; a test holds it to what is served.
//
//go:embed openapi.yaml
var openAPI []byte

// openAPI answers GET /admin/openapi.yaml.
func (s *Server) openAPI(x *exchange) {
	if !x.takesNoParams() {
		return
	}
	x.answer(fasthttp.StatusOK, openAPI)
	x.ctx.Response.Header.SetContentType("application/yaml")
}
