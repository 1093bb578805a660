"use strict";
SwaggerUIBundle({
  url: "/api/client/openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  docExpansion: "none",
  filter: true,
  validatorUrl: null,
  syntaxHighlight: { activated: false },
});
